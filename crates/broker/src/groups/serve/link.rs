//! What waits for one member's stream: a queue that costs nothing while it is empty, and there may be ten thousand.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::task::AtomicWaker;
use parking_lot::Mutex;

use crate::groups::core::api::Message;

/// Messages that wait for one member's stream; one that reads nothing is cut off then.
const QUEUE_MAX: usize = 32;

#[derive(Default)]
struct Queue {
    messages: VecDeque<Message>,
    /// Either end is gone.
    closed: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    waker: AtomicWaker,
}

/// The coordinator's end. Dropped, it ends the stream after what is in the queue.
pub(crate) struct Teller(Arc<Shared>);

/// The stream's end.
pub(crate) struct Told(Arc<Shared>);

pub(crate) fn link() -> (Teller, Told) {
    let shared = Arc::new(Shared::default());
    (Teller(Arc::clone(&shared)), Told(shared))
}

impl Teller {
    /// Whether there was room and somebody who listens.
    pub(super) fn tell(&self, message: Message) -> bool {
        {
            let mut queue = self.0.queue.lock();
            if queue.closed || queue.messages.len() >= QUEUE_MAX {
                return false;
            }
            queue.messages.push_back(message);
        }
        self.0.waker.wake();
        true
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        self.0.queue.lock().closed = true;
        self.0.waker.wake();
    }
}

impl Told {
    /// The next message; `None` when nothing will come any more.
    pub(crate) async fn next(&mut self) -> Option<Message> {
        std::future::poll_fn(|context| self.poll(context)).await
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Message>> {
        self.0.waker.register(context.waker());
        let mut queue = self.0.queue.lock();
        match queue.messages.pop_front() {
            Some(message) => {
                if queue.messages.is_empty() {
                    queue.messages = VecDeque::new();
                }
                Poll::Ready(Some(message))
            }
            None if queue.closed => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        let mut queue = self.0.queue.lock();
        queue.closed = true;
        queue.messages = VecDeque::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_queue_is_bounded_and_ends_after_what_is_in_it() {
        let (teller, mut told) = link();
        for _ in 0..QUEUE_MAX {
            assert!(teller.tell(Message::Beat));
        }
        assert!(!teller.tell(Message::Beat));
        assert_eq!(told.next().await, Some(Message::Beat));
        assert!(teller.tell(Message::Left));
        drop(teller);
        for _ in 1..QUEUE_MAX {
            assert_eq!(told.next().await, Some(Message::Beat));
        }
        assert_eq!(told.next().await, Some(Message::Left));
        assert_eq!(told.next().await, None);
        let (teller, told) = link();
        drop(told);
        assert!(!teller.tell(Message::Beat));
    }
}
