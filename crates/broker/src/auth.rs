//! The one door: every call passes [`authorize`] before it does anything. Trivial until there are users.

use timberline_proto::error::ApiError;

/// Who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Principal {
    /// Nobody is known yet.
    Anonymous,
}

/// What it wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Read,
    Write,
    Describe,
    Create,
    Delete,
    Alter,
}

/// What it wants to do it to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resource<'a> {
    Cluster,
    Topic(&'a str),
}

/// # Errors
/// None yet: everybody who reaches a listener may do everything.
pub(crate) fn authorize(
    principal: Principal,
    operation: Operation,
    resource: Resource<'_>,
) -> Result<(), ApiError> {
    tracing::trace!(?principal, ?operation, ?resource, "authorized");
    Ok(())
}
