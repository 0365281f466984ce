"""Serve the page that reads `.nola` files (`web/`) on the loopback interface, with one file opened in it.

    server.py   `Viewer`: the HTTP server, and what it refuses
    page.py     the page, and the policy that says what it may load

`make web` builds the page and puts it here, as `reader.html`.
"""
