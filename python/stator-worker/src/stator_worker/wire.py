"""The messages of the protocols: classes made of the descriptors that the build compiled.

They have a pool of their own, so that another package of the process may know the same files.
"""

from importlib import resources

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_POOL = descriptor_pool.DescriptorPool()


def _load():
    data = resources.files(__package__).joinpath("messages.binpb").read_bytes()
    for file in descriptor_pb2.FileDescriptorSet.FromString(data).file:
        _POOL.AddSerializedFile(file.SerializeToString())


_load()


class Package:
    """The messages of a protobuf package, by name: `worker.Tensor(name="x")`."""

    def __init__(self, name):
        self._name = name

    def __getattr__(self, message):
        try:
            descriptor = _POOL.FindMessageTypeByName(f"{self._name}.{message}")
        except KeyError:
            raise AttributeError(f"no message `{self._name}.{message}`") from None
        found = message_factory.GetMessageClass(descriptor)
        setattr(self, message, found)
        return found

    def number(self, enum, value):
        """Returns the number of a value of an enum of the package."""
        return _POOL.FindEnumTypeByName(f"{self._name}.{enum}").values_by_name[value].number


worker = Package("stator.worker.v1")
triton = Package("inference")
etcd = Package("etcdserverpb")
