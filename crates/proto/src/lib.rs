//! Code generated from `/proto`, and small conversions between its types and ours.
//!
//! It holds nothing else: no logic, no I/O. `storage` and `consensus` do not use it, so that the formats on
//! disk and between replicas do not depend on the API's.
#![forbid(unsafe_code)]

pub mod codec;
pub mod error;

pub use packages::internal::v1 as internal;
pub use packages::v1;

/// Modules nested as the packages are: generated code names its neighbours by `super`.
mod packages {
    /// The client-facing API, package `timberline.v1`.
    #[allow(missing_docs, unreachable_pub, clippy::all, rustdoc::all)]
    pub mod v1 {
        tonic::include_proto!("timberline.v1");
    }

    pub(super) mod internal {
        /// What brokers write for themselves and say to each other, package `timberline.internal.v1`.
        #[allow(missing_docs, unreachable_pub, clippy::all, rustdoc::all)]
        pub mod v1 {
            tonic::include_proto!("timberline.internal.v1");
        }
    }
}

/// The encoded `FileDescriptorSet` of the details of errors, `google.rpc`, for server reflection.
pub use tonic_types::pb::FILE_DESCRIPTOR_SET as ERROR_DESCRIPTORS;

/// The encoded `FileDescriptorSet` of the API for clients, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
