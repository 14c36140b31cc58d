"""Runs Python workers as processes, and makes a tokenizer for them."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from conftest import ROOT
from patience import PATIENCE_SECONDS

EXAMPLES = ROOT / "examples" / "python"
FAULTY = pathlib.Path(__file__).with_name("faulty_worker.py")
TEMPLATE = ("{% for message in messages %}<|start|>{{ message.role }}: {{ message.content }}<|end|>"
            "{% endfor %}<|start|>")


class PythonWorker:
    """A worker of `stator_worker` in a process of its own."""

    def __init__(self, script, discovery, *arguments, **settings):
        variables = {f"STATOR_{name.upper()}": str(value) for name, value in settings.items()}
        self.log = []
        self.process = subprocess.Popen(
            [sys.executable, str(script), *map(str, arguments)], stderr=subprocess.PIPE, text=True,
            env={**os.environ, "STATOR_DISCOVERY": discovery, **variables})
        self.ready = threading.Event()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        assert self.ready.wait(PATIENCE_SECONDS) and self.is_running(), "".join(self.log)

    def _read(self):
        for line in self.process.stderr:
            self.log.append(line)
            if " ready: " in line:
                self.ready.set()
        self.ready.set()

    def is_running(self):
        return self.process.poll() is None

    def says(self, text):
        return sum(text in line for line in self.log)

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def wait(self):
        """Waits until the process has ended and all that it said is in the log; returns its status."""
        status = self.process.wait(PATIENCE_SECONDS)
        self.reader.join(PATIENCE_SECONDS)
        return status

    def stop(self):
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def python_worker(script, discovery, *arguments, **settings):
    """Runs a Python worker for the length of a block."""
    worker = PythonWorker(script, discovery, *arguments, **settings)
    try:
        yield worker
    finally:
        worker.stop()


def write_tokenizer(folder):
    """Writes a tokenizer that has a token for each byte, and a chat template."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: id for id, letter in enumerate(letters)},
                                     merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|start|>", "<|end|>"])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|end|>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
