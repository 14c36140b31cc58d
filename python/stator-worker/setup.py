"""Compiles the protocol's messages into the package when it is built.

What is written is the descriptors of the messages, not Python code: the installed protobuf makes
classes of them at import, whatever its version is.
"""

import pathlib
import shutil

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

HERE = pathlib.Path(__file__).parent
OWN = HERE / "proto"
SHARED = ["worker.proto", "model_config.proto"]


def shared_folder():
    """Returns where the repository's protos are, or their copies in a source distribution."""
    repository = HERE.parents[1] / "proto"
    return repository if (repository / SHARED[0]).exists() else OWN


class BuildMessages(build_py):
    def run(self):
        super().run()
        root = HERE / "src" if self.editable_mode else pathlib.Path(self.build_lib)
        compile_to(root / "stator_worker" / "messages.binpb")


class CarryProtos(sdist):
    def make_release_tree(self, base_dir, files):
        super().make_release_tree(base_dir, files)
        for name in SHARED + ["etcd.proto"]:
            folder = OWN if name == "etcd.proto" else shared_folder()
            target = pathlib.Path(base_dir, "proto", name)
            target.parent.mkdir(exist_ok=True)
            shutil.copy(folder / name, target)


def compile_to(path):
    from grpc_tools import protoc

    path.parent.mkdir(parents=True, exist_ok=True)
    folders = dict.fromkeys([shared_folder(), OWN])
    arguments = ["protoc", *(f"-I{folder}" for folder in folders), f"--descriptor_set_out={path}",
                 *SHARED, "etcd.proto"]
    if protoc.main(arguments) != 0:
        raise RuntimeError("the protocol's messages could not be compiled")


setup(cmdclass={"build_py": BuildMessages, "sdist": CarryProtos})
