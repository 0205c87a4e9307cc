//! `grpc.health.v1`: a name for each service, and "" for the broker.

use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

/// Every service that has a status of its own.
const SERVICES: &[&str] = &[
    "",
    "timberline.v1.ProducerService",
    "timberline.v1.ConsumerService",
    "timberline.v1.MetadataService",
    "timberline.v1.AdminService",
    "timberline.v1.GroupService",
];

/// Sets what health checks are told.
#[derive(Clone)]
pub(crate) struct Health(pub(super) HealthReporter);

impl Health {
    pub(crate) async fn set(&self, serving: bool) {
        let status = if serving {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        };
        for service in SERVICES {
            self.0.set_service_status(service, status).await;
        }
    }
}
