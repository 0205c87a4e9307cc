//! Which partition a record goes to.

use std::fmt;
use std::sync::Arc;

use super::record::ProducerRecord;

/// Chooses partitions for records that name none.
///
/// Called in `send`, on the caller's task, for each such record: it must be quick and must not block.
pub trait Partitioner: Send + Sync {
    /// The partition, from 0, of `partitions`, which are at least one and only ever become more. `None`: the record goes
    /// along with others that have no preference, in the partition whose batch is being filled.
    ///
    /// A number that there is not fails the record with `UNKNOWN_PARTITION`.
    fn partition(&self, record: &ProducerRecord, partitions: usize) -> Option<usize>;
}

/// How a producer chooses partitions: as Kafka's clients do, or by an own [`Partitioner`].
#[derive(Clone, Default)]
pub struct Partitioning(Option<Arc<dyn Partitioner>>);

impl Partitioning {
    /// Records with a key by its murmur2 hash, so that they meet those of Kafka's Java clients in the same partition; those
    /// without one fill a batch of one partition and then go on to the partition with the least waiting (KIP-480).
    pub fn by_key() -> Partitioning {
        Partitioning::default()
    }

    /// By an own choice.
    pub fn custom(partitioner: impl Partitioner + 'static) -> Partitioning {
        Partitioning(Some(Arc::new(partitioner)))
    }

    pub(crate) fn choose(&self, record: &ProducerRecord, partitions: usize) -> Option<usize> {
        match &self.0 {
            Some(own) => own.partition(record, partitions),
            None => record.key.as_ref().map(|key| for_key(key, partitions)),
        }
    }
}

impl fmt::Debug for Partitioning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Some(_) => "custom",
            None => "by key",
        })
    }
}

/// Kafka's `Utils.murmur2`: MurmurHash2 by Austin Appleby, 32 bits, seed 0x9747b28c.
pub(crate) fn murmur2(data: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    const R: u32 = 24;
    let mut hash = SEED ^ data.len() as u32;
    let mut words = data.chunks_exact(4);
    for word in words.by_ref() {
        let mut k = word
            .iter()
            .rev()
            .fold(0_u32, |k, &byte| k << 8 | u32::from(byte));
        k = k.wrapping_mul(M);
        k ^= k >> R;
        k = k.wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ k;
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        hash ^= rest
            .iter()
            .rev()
            .fold(0_u32, |k, &byte| k << 8 | u32::from(byte));
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ hash >> 15
}

/// The partition of a key, as Kafka's default partitioner chooses it. `partitions` is not 0.
pub(crate) fn for_key(key: &[u8], partitions: usize) -> usize {
    (murmur2(key) & 0x7fff_ffff) as usize % partitions
}

/// The next partition for records without a key: another than the current one, that with the least bytes
/// waiting, the first behind the current one among equals.
pub(crate) fn next_sticky(
    current: usize,
    partitions: usize,
    waiting: impl Fn(usize) -> usize,
) -> usize {
    let others = (1..partitions.max(1)).map(|step| (current + step) % partitions);
    others
        .min_by_key(|&partition| waiting(partition))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values of Kafka's own `UtilsTest.testMurmur2`.
    #[test]
    fn hashes_as_kafka_does() {
        let cases: [(&[u8], i32); 7] = [
            (b"21", -973_932_308),
            (b"foobar", -790_332_482),
            (b"a-little-bit-long-string", -985_981_536),
            (b"a-little-bit-longer-string", -1_486_304_829),
            (
                b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8",
                -58_897_971,
            ),
            (b"abc", 479_470_107),
            (b"", 275_646_681),
        ];
        for (key, hash) in cases {
            assert_eq!(murmur2(key) as i32, hash, "{key:?}");
        }
        assert_eq!(
            for_key(b"21", 10),
            (-973_932_308_i32 & 0x7fff_ffff) as usize % 10
        );
    }

    #[test]
    fn the_sticky_partition_moves_on_to_the_emptiest() {
        assert_eq!(next_sticky(0, 1, |_| 9), 0);
        assert_eq!(next_sticky(1, 4, |_| 0), 2);
        assert_eq!(next_sticky(3, 4, |_| 0), 0);
        assert_eq!(next_sticky(0, 4, |partition| [0, 5, 3, 4][partition]), 2);
    }
}
