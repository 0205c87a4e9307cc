"""member.py BOOTSTRAP TOPIC GROUP COUNT: reads as a member of a group until it has seen so many records, and leaves.

Two threads for the membership, one loop that reads. To keep it short it ends with an error when its coordinator moves; a real one
joins again with its member id. A real one also stops by itself when no heartbeat was answered within its session timeout.
"""

import queue
import sys
import threading
import time

import grpc
from timberline.v1 import common_pb2, consumer_pb2, consumer_pb2_grpc, group_pb2, group_pb2_grpc

from cluster import Cluster, named


class Member:
    def __init__(self, cluster, topic, group):
        self.group = group
        self.news = queue.Queue()
        self.up = queue.Queue()
        hello = group_pb2.JoinHello(
            hello=common_pb2.Hello(software="member.py", protocol_version=1),
            group_id=group,
            subscription=group_pb2.Subscription(topics=[topic]),
        )
        self.up.put(group_pb2.JoinRequest(hello=hello))
        find = group_pb2.FindCoordinatorRequest(group_id=group)
        found = cluster.any(lambda channel: group_pb2_grpc.GroupServiceStub(channel).FindCoordinator(find, timeout=5))
        self.service = group_pb2_grpc.GroupServiceStub(cluster.channel(found.address))
        self.epoch = None
        self.held = {}
        stream = self.service.Join(iter(self.up.get, None))
        self.about = next(stream).hello
        threading.Thread(target=self.listen, args=[stream], daemon=True).start()
        threading.Thread(target=self.beat, daemon=True).start()

    def listen(self, stream):
        try:
            for message in stream:
                if message.WhichOneof("kind") != "beat":
                    self.news.put(message)
        except grpc.RpcError as error:
            print(f"the stream broke: {error.details()}", file=sys.stderr)
        self.news.put(None)

    def beat(self):
        while True:
            time.sleep(self.about.heartbeat_interval_ms / 1000)
            self.acknowledge()

    def acknowledge(self):
        self.up.put(group_pb2.JoinRequest(heartbeat=group_pb2.JoinHeartbeat(applied_epoch=self.epoch)))

    def follow(self, wait):
        """Takes in what came: an assignment is all that may be read from now on."""
        try:
            message = self.news.get(timeout=wait)
        except queue.Empty:
            return
        if message is None or message.WhichOneof("kind") != "assignment":
            raise SystemExit(f"the membership is over: {message}")
        # A start without an offset: nothing is committed; 0 then, as far as nothing was deleted.
        starts = {(one.topic_id, one.partition): one.offset for one in message.assignment.starts}
        named = [(each.topic_id, number) for each in message.assignment.partitions for number in each.partitions]
        # What was read is committed already, so what goes to others can go at once.
        self.held = {one: self.held.get(one, starts.get(one, 0)) for one in named}
        self.epoch = message.assignment.member_epoch
        self.acknowledge()

    def commit(self, topic_id, partition, offset):
        item = group_pb2.CommitItem(topic=common_pb2.TopicRef(id=topic_id), partition=partition, offset=offset)
        request = group_pb2.CommitRequest(
            group_id=self.group, member_id=self.about.member_id, member_epoch=self.epoch, items=[item]
        )
        result = self.service.Commit(request, timeout=5).results[0]
        if result.HasField("error"):
            raise SystemExit(f"{result.error.reason}: {result.error.message}")
        self.held[topic_id, partition] = offset

    def leave(self):
        self.up.put(group_pb2.JoinRequest(leave=group_pb2.JoinLeave()))
        while self.news.get(timeout=5) is not None:
            pass


def main(bootstrap, topic, group, count):
    cluster = Cluster(bootstrap)
    member = Member(cluster, topic, group)
    while count > 0:
        member.follow(wait=0.1)
        for (topic_id, partition), offset in list(member.held.items()):
            request = consumer_pb2.FetchOnceRequest(
                topic=common_pb2.TopicRef(id=topic_id), partition=partition, offset=offset, max_records=count
            )
            fetch = lambda channel: consumer_pb2_grpc.ConsumerServiceStub(channel).FetchOnce(request, timeout=5)
            fetched = cluster.leader(topic, partition, fetch)
            for record in fetched.records:
                print(record.value.decode(), flush=True)
            count -= len(fetched.records)
            if fetched.records:
                member.commit(topic_id, partition, fetched.next_offset)
            if count == 0:
                break
    member.leave()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
