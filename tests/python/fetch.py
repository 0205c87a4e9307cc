"""fetch.py BOOTSTRAP TOPIC PARTITION GROUP: prints the records from where the group stands to the end, and commits.

The group must have no members: whoever reads by hand shares nothing.
"""

import sys

import grpc
from timberline.v1 import consumer_pb2, consumer_pb2_grpc, group_pb2, group_pb2_grpc

from cluster import Cluster, accepted, named


def main(bootstrap, topic, partition, group):
    cluster = Cluster(bootstrap)
    offset = committed(cluster, topic, partition, group)
    while True:
        request = consumer_pb2.FetchOnceRequest(topic=named(topic), partition=partition, offset=offset)
        fetch = lambda channel: consumer_pb2_grpc.ConsumerServiceStub(channel).FetchOnce(request, timeout=5)
        fetched = cluster.leader(topic, partition, fetch)
        for record in fetched.records:
            print(record.value.decode(), flush=True)
        offset = fetched.next_offset
        item = group_pb2.CommitItem(topic=named(topic), partition=partition, offset=offset)
        request = group_pb2.CommitRequest(group_id=group, items=[item])
        commit = lambda channel: accepted(group_pb2_grpc.GroupServiceStub(channel).Commit(request, timeout=5).results[0])
        cluster.any(commit)
        if offset >= fetched.high_watermark:
            return


def committed(cluster, topic, partition, group):
    wanted = group_pb2.FetchOffsetsTopic(topic=named(topic), partitions=[partition])
    request = group_pb2.FetchOffsetsRequest(group_id=group, topics=[wanted])
    fetch = lambda channel: group_pb2_grpc.GroupServiceStub(channel).FetchOffsets(request, timeout=5)
    try:
        found = accepted(cluster.any(fetch).offsets[0])
    except grpc.RpcError as error:
        # A group begins with its first commit.
        if error.code() == grpc.StatusCode.NOT_FOUND:
            return 0
        raise
    # Without an offset nothing is committed here. Then 0, as far as nothing was deleted.
    return found.offset


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
