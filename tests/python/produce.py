"""produce.py BOOTSTRAP TOPIC PARTITION: writes a record for each line of standard input, once each."""

import sys

from timberline.v1 import producer_pb2, producer_pb2_grpc

from cluster import Cluster, accepted, named


def main(bootstrap, topic, partition):
    cluster = Cluster(bootstrap)
    init = producer_pb2.InitProducerRequest()
    producer = cluster.any(lambda channel: producer_pb2_grpc.ProducerServiceStub(channel).InitProducer(init, timeout=5))
    for sequence, line in enumerate(sys.stdin):
        # With id, epoch and sequence a request that is sent again is stored once.
        request = producer_pb2.ProduceOnceRequest(
            topic=named(topic),
            partition=partition,
            records=[producer_pb2.ProduceRecord(value=line.rstrip("\n").encode())],
            producer_id=producer.producer_id,
            producer_epoch=producer.producer_epoch,
            base_sequence=sequence,
        )
        service = producer_pb2_grpc.ProducerServiceStub
        produce = lambda channel: accepted(service(channel).ProduceOnce(request, timeout=5).results[0])
        result = cluster.leader(topic, partition, produce)
        print(f"{result.partition}/{result.offset}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
