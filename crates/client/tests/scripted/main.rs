//! The client against a scripted broker: a real server on loopback whose faults are chosen by the test.

// Helpers of tests, which clippy does not take for tests.
#![allow(clippy::unwrap_used)]

mod admin;
mod broker;
mod consumer;
mod group;
mod leaders;
mod producer;

use std::time::Duration;

use timberline_client::{Client, ClientOptions};

use broker::Broker;

async fn client(broker: &Broker) -> Client {
    let options = ClientOptions::default()
        .bootstrap([broker.state.address.to_string()])
        .retry_backoff(Duration::from_millis(5))
        .retry_backoff_max(Duration::from_millis(50))
        .request_timeout(Duration::from_secs(5));
    Client::connect(options).await.unwrap()
}

/// Fails a test that hangs.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future)
        .await
        .expect("it hangs")
}
