//! How client commands reach a cluster.

use std::time::Duration;

use clap::Args;
use timberline_client::{Admin, Client, ClientOptions};

use crate::failure::Failure;
use crate::output::Format;
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

/// What every command takes that looks after the cluster, its topics, partitions, brokers and groups.
#[derive(Debug, Args)]
pub(crate) struct AdminArgs {
    /// How the result is printed.
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: Format,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

impl AdminArgs {
    pub(crate) async fn admin(&self) -> Result<Admin, Failure> {
        Ok(self.client.connect().await?.admin())
    }
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
