"""What every program here needs: the messages, and a connection to the broker that is to be asked."""

import time

import grpc
from timberline.v1 import common_pb2, metadata_pb2, metadata_pb2_grpc


class Cluster:
    def __init__(self, bootstrap):
        self.bootstrap = bootstrap.split(",")
        self.channels = {}

    def channel(self, address):
        if address not in self.channels:
            self.channels[address] = grpc.insecure_channel(address)
        return self.channels[address]

    def any(self, ask):
        """Asks one broker after the other until one answers."""
        return self.again(ask, lambda attempt: self.bootstrap[attempt % len(self.bootstrap)])

    def leader(self, topic, partition, ask):
        """Asks the leader of a partition, which changes when a broker goes."""
        return self.again(ask, lambda _: self.leader_address(topic, partition))

    def leader_address(self, topic, partition):
        metadata = self.metadata(topic)
        brokers = {broker.broker_id: broker.address for broker in metadata.cluster.brokers}
        leaders = {one.partition: one.leader_id for one in metadata.topics[0].partitions}
        if partition not in leaders:
            raise SystemExit(f"{topic} has no partition {partition}")
        # Without a leader anybody says so, and it is tried again.
        return brokers.get(leaders[partition], self.bootstrap[0])

    def metadata(self, topic):
        request = metadata_pb2.GetMetadataRequest(topics=[named(topic)])
        metadata = self.any(lambda channel: metadata_pb2_grpc.MetadataServiceStub(channel).GetMetadata(request, timeout=2))
        if metadata.unknown:
            raise SystemExit(f"no topic named {topic}")
        return metadata

    def again(self, ask, address, attempts=60):
        """UNAVAILABLE and DEADLINE_EXCEEDED may be otherwise a moment later; all else is final."""
        for attempt in range(attempts):
            try:
                return ask(self.channel(address(attempt)))
            except grpc.RpcError as error:
                retriable = error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
                if not retriable or attempt == attempts - 1:
                    raise
                time.sleep(0.1)


def named(topic):
    return common_pb2.TopicRef(name=topic)
