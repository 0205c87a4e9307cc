//! Record batches: format v2, built, viewed, validated and compressed.
#![forbid(unsafe_code)]
