"""Publish `.nola` files on the Hugging Face Hub, and open those of others. It needs `nola-codec[hub]` when it is used.

Its files:

    publishing.py, push_report.py    `push_to_hub`: files and a model card in one commit
    pulling.py                       `pull` and `from_hub`: one file of a repository, by way of the Hub's own cache
    card.py, card_facts.py           the model card of a file
    card_merging.py                  the card put into the README that is there
    held_out.py                      losses on held-out rows, for the card
    escaping.py                      text of strangers, as Markdown
    addresses.py                     names of repositories and of files in them
    connection.py                    the client, and its errors as errors of this package
"""

from __future__ import annotations

from nola_codec.integrations.hub.publishing import push_to_hub
from nola_codec.integrations.hub.pulling import from_hub, pull
from nola_codec.integrations.hub.push_report import PushReport

__all__ = ["PushReport", "from_hub", "pull", "push_to_hub"]
