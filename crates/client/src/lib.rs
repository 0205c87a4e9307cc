//! Producer, consumer and admin: the library applications use.
#![forbid(unsafe_code)]
