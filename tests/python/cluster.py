"""What every program here needs: the messages, and a connection to the broker that is to be asked."""

import time

import grpc
from timberline.v1 import common_pb2, metadata_pb2, metadata_pb2_grpc


# The rest is final, or needs a wait that the error names: docs/errors.md.
RETRIABLE = [grpc.StatusCode.UNAVAILABLE.value[0], grpc.StatusCode.DEADLINE_EXCEEDED.value[0]]


class Refused(SystemExit):
    """One item of a call was refused; the call as such was not."""

    def __init__(self, error):
        super().__init__(f"{error.reason}: {error.message}")
        self.retriable = error.code in RETRIABLE


def accepted(result):
    if result.HasField("error"):
        raise Refused(result.error)
    return result


class Cluster:
    def __init__(self, bootstrap):
        self.bootstrap = bootstrap.split(",")
        self.leaders = {}
        self.channels = {}

    def channel(self, address):
        if address not in self.channels:
            self.channels[address] = grpc.insecure_channel(address)
        return self.channels[address]

    def any(self, ask):
        """Asks the broker that answered last, and when it doesn't, the next one."""
        rotate = lambda: self.bootstrap.append(self.bootstrap.pop(0))
        return self.again(ask, lambda: self.bootstrap[0], rotate)

    def leader(self, topic, partition, ask):
        """Asks the leader of a partition, which is another one when a broker goes."""
        forget = lambda: self.leaders.pop((topic, partition), None)
        return self.again(ask, lambda: self.leader_address(topic, partition), forget)

    def leader_address(self, topic, partition):
        if (topic, partition) not in self.leaders:
            metadata = self.metadata(topic)
            brokers = {broker.broker_id: broker.address for broker in metadata.cluster.brokers}
            leaders = {one.partition: one.leader_id for one in metadata.topics[0].partitions}
            if partition not in leaders:
                raise SystemExit(f"{topic} has no partition {partition}")
            # Without a leader anybody says so, and it is tried again.
            self.leaders[topic, partition] = brokers.get(leaders[partition], self.bootstrap[0])
        return self.leaders[topic, partition]

    def metadata(self, topic):
        request = metadata_pb2.GetMetadataRequest(topics=[named(topic)])
        metadata = self.any(lambda channel: metadata_pb2_grpc.MetadataServiceStub(channel).GetMetadata(request, timeout=2))
        if metadata.unknown:
            raise SystemExit(f"no topic named {topic}")
        return metadata

    def again(self, ask, address, forget, attempts=60):
        """What is retriable may be otherwise a moment later."""
        for attempt in range(attempts):
            try:
                return ask(self.channel(address()))
            except (grpc.RpcError, Refused) as error:
                retriable = error.retriable if isinstance(error, Refused) else error.code().value[0] in RETRIABLE
                if not retriable or attempt == attempts - 1:
                    raise
                forget()
                time.sleep(0.1)


def named(topic):
    return common_pb2.TopicRef(name=topic)
