//! What a producer tells whoever counts: one call a batch, never one a record.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::error::Error;

/// Told of batches as they are sent, acknowledged and given up: for metrics.
///
/// All methods are called on the producer's own task, which does nothing else meanwhile: count, and return. Each does nothing
/// unless it is written.
pub trait ProducerObserver: Send + Sync {
    /// A batch was put on the stream to its leader, for the first time or again.
    fn batch_sent(&self, batch: &BatchInfo<'_>) {
        let _ = batch;
    }

    /// A batch is acknowledged. `took` is from its first record's `send`.
    fn batch_acknowledged(&self, batch: &BatchInfo<'_>, took: Duration) {
        let _ = (batch, took);
    }

    /// All records of a batch have failed.
    fn batch_failed(&self, batch: &BatchInfo<'_>, error: &Error) {
        let _ = (batch, error);
    }
}

/// A batch, as observers see it.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct BatchInfo<'a> {
    /// The topic's name.
    pub topic: &'a str,
    /// The partition.
    pub partition: i32,
    /// Records in it.
    pub records: u32,
    /// Its encoded size, in bytes, compressed if it is.
    pub bytes: usize,
}

/// Who is told; nobody by default.
#[derive(Clone, Default)]
pub struct Observer(pub(crate) Option<Arc<dyn ProducerObserver>>);

impl Observer {
    /// Tells this one.
    pub fn new(observer: impl ProducerObserver + 'static) -> Observer {
        Observer(Some(Arc::new(observer)))
    }

    /// Tells one that is shared with others.
    pub fn shared(observer: Arc<dyn ProducerObserver>) -> Observer {
        Observer(Some(observer))
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Some(_) => "observer",
            None => "nobody",
        })
    }
}
