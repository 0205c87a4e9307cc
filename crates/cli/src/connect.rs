//! How client commands reach a cluster.

use std::time::Duration;

use clap::Args;
use timberline_client::{Client, ClientOptions};

use crate::failure::Failure;
use crate::values::parse_duration;

/// Flags of every client command.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Connection")]
pub(crate) struct ClientArgs {
    /// Brokers to ask first, HOST:PORT, separated by commas.
    #[arg(
        long,
        env = "TIMBERLINE_BOOTSTRAP",
        default_value = "127.0.0.1:7071",
        value_name = "HOST:PORT,…"
    )]
    pub(crate) bootstrap: String,

    /// How long a call may take, its retries included.
    #[arg(long = "request-timeout", default_value = "30s", value_parser = parse_duration, value_name = "TIME")]
    pub(crate) request_timeout: Duration,
}

impl ClientArgs {
    /// Reaches a broker, now or not at all.
    pub(crate) async fn connect(&self) -> Result<Client, Failure> {
        self.connect_with(self.options()).await
    }

    pub(crate) fn options(&self) -> ClientOptions {
        ClientOptions::default()
            .bootstrap([&self.bootstrap])
            .client_id("timberline-cli".to_owned())
            .request_timeout(self.request_timeout)
    }

    pub(crate) async fn connect_with(&self, options: ClientOptions) -> Result<Client, Failure> {
        Ok(Client::connect(options).await?)
    }
}
