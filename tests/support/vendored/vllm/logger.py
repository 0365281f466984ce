"""Stands for `vllm.logger`."""

import logging


class _Logger(logging.LoggerAdapter):
    def info_once(self, message: str, *arguments: object) -> None:
        self.info(message, *arguments)


def init_logger(name: str) -> _Logger:
    return _Logger(logging.getLogger(name), {})
