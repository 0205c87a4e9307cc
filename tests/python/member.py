"""member.py BOOTSTRAP TOPIC GROUP COUNT: reads as a member of a group until it has seen so many records, and leaves.

A thread listens to the coordinator, one sends heartbeats, and one loop reads, commits, and takes in what came. To keep it short
it ends when it is put out, and it does not stop by itself when no heartbeat was answered within its session timeout.
"""

import queue
import sys
import threading
import time

import grpc
from timberline.v1 import common_pb2, consumer_pb2, consumer_pb2_grpc, group_pb2, group_pb2_grpc

from cluster import Cluster, Refused, accepted


class Member:
    def __init__(self, cluster, topic, group):
        self.cluster, self.topic, self.group = cluster, topic, group
        self.held = {}  # (topic id, partition): the next offset
        self.member_id = None
        self.epoch = None  # of the assignment that is applied, for commits
        self.join()
        threading.Thread(target=self.beat, daemon=True).start()

    def join(self):
        """A new member, or one that comes back and says what it still holds."""
        hello = group_pb2.JoinHello(
            hello=common_pb2.Hello(software="member.py", protocol_version=1),
            group_id=self.group,
            member_id=self.member_id,
            member_epoch=self.epoch,
            subscription=group_pb2.Subscription(topics=[self.topic]),
            owned=[group_pb2.TopicPartitions(topic_id=id, partitions=[number]) for id, number in self.held],
        )
        find = group_pb2.FindCoordinatorRequest(group_id=self.group)
        for _ in range(60):
            found = self.cluster.any(lambda channel: group_pb2_grpc.GroupServiceStub(channel).FindCoordinator(find, timeout=5))
            self.up, self.news, self.applied = queue.Queue(), queue.Queue(), None
            self.up.put(group_pb2.JoinRequest(hello=hello))
            stream = group_pb2_grpc.GroupServiceStub(self.cluster.channel(found.address)).Join(iter(self.up.get, None))
            threading.Thread(target=self.listen, args=[stream, self.news], daemon=True).start()
            first = self.news.get()
            if first is not None and first.WhichOneof("kind") == "hello":
                self.member_id, self.interval = first.hello.member_id, first.hello.heartbeat_interval_ms / 1000
                return
            self.must_be_retriable(first)
            time.sleep(0.1)
        raise SystemExit("no coordinator takes this member")

    def listen(self, stream, news):
        try:
            for message in stream:
                if message.WhichOneof("kind") != "beat":
                    news.put(message)
        except grpc.RpcError:
            pass
        news.put(None)

    def beat(self):
        while True:
            time.sleep(self.interval)
            self.acknowledge()

    def acknowledge(self):
        self.up.put(group_pb2.JoinRequest(heartbeat=group_pb2.JoinHeartbeat(applied_epoch=self.applied)))

    def must_be_retriable(self, message):
        if message is not None and message.WhichOneof("kind") == "failure":
            refused = Refused(message.failure.error)
            if not refused.retriable:
                raise refused

    def follow(self, wait):
        """Takes in what came: an assignment is all that may be read from now on."""
        try:
            message = self.news.get(timeout=wait)
        except queue.Empty:
            return
        if message is None or message.WhichOneof("kind") != "assignment":
            # The coordinator moves, or the stream broke. What is held is read on.
            self.must_be_retriable(message)
            return self.join()
        # A start without an offset: nothing is committed; 0 then, as far as nothing was deleted.
        starts = {(one.topic_id, one.partition): one.offset for one in message.assignment.starts}
        wanted = [(each.topic_id, number) for each in message.assignment.partitions for number in each.partitions]
        # What was read is committed already, so what goes to others can go at once.
        self.held = {one: self.held.get(one, starts.get(one, 0)) for one in wanted}
        self.epoch = self.applied = message.assignment.member_epoch
        self.acknowledge()

    def commit(self, topic_id, partition, offset):
        item = group_pb2.CommitItem(topic=common_pb2.TopicRef(id=topic_id), partition=partition, offset=offset)
        request = group_pb2.CommitRequest(
            group_id=self.group, member_id=self.member_id, member_epoch=self.epoch, items=[item]
        )
        service = group_pb2_grpc.GroupServiceStub
        self.cluster.any(lambda channel: accepted(service(channel).Commit(request, timeout=5).results[0]))
        self.held[topic_id, partition] = offset

    def leave(self):
        self.up.put(group_pb2.JoinRequest(leave=group_pb2.JoinLeave()))
        try:
            while self.news.get(timeout=5) is not None:
                pass
        except queue.Empty:
            print("nobody heard it; the session ends it", file=sys.stderr)


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
