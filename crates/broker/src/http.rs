//! The HTTP listener: probes and metrics.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::task::JoinHandle;

use crate::core::Core;
use crate::lifecycle::{Lifecycle, Phase};
use crate::listen::Listener;
use crate::metrics;

/// The broker, once it has recovered.
pub(crate) type Slot = Arc<ArcSwapOption<Core>>;

/// Prometheus' text format.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Serves until the broker has stopped, so that probes see it drain.
pub(crate) fn serve(
    slot: &Slot,
    lifecycle: &Arc<Lifecycle>,
    listener: Listener,
) -> JoinHandle<std::io::Result<()>> {
    let router = Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/startupz", get(started))
        .route("/metrics", get(scrape))
        .route("/metrics/detailed", get(detailed))
        .with_state(Arc::clone(slot));
    let stopped = lifecycle.reached(Phase::Stopped);
    tokio::spawn(async move {
        axum::serve(listener, router)
            .with_graceful_shutdown(stopped)
            .await
    })
}

fn unavailable(why: &str) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response()
}

async fn ready(State(slot): State<Slot>) -> Response {
    match slot.load_full() {
        None => unavailable("starting"),
        Some(core) => match core.not_ready() {
            Some(why) => unavailable(&why),
            None => "ok\n".into_response(),
        },
    }
}

async fn started(State(slot): State<Slot>) -> Response {
    match slot.load_full() {
        Some(core) if core.lifecycle.phase() >= Phase::Serving => "ok\n".into_response(),
        _ => unavailable("starting"),
    }
}

/// Runs a text on a thread that may block, and sends it.
async fn text(slot: Slot, make: impl FnOnce(&Core) -> Vec<u8> + Send + 'static) -> Response {
    let Some(core) = slot.load_full() else {
        return unavailable("starting");
    };
    match tokio::task::spawn_blocking(move || make(&core)).await {
        Ok(body) => ([(header::CONTENT_TYPE, METRICS_TYPE)], body).into_response(),
        Err(_) => unavailable("stopping"),
    }
}

async fn scrape(State(slot): State<Slot>) -> Response {
    text(slot, metrics::scrape).await
}

async fn detailed(State(slot): State<Slot>) -> Response {
    text(slot, |core| metrics::detailed(core).into_bytes()).await
}
