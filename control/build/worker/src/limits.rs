//! Every bound of the worker. `docs/image-builds.md` tells them to users.

/// The most entries of one layer.
pub const LAYER_ENTRIES_MAX: usize = 2_000_000;
/// The largest request to the worker, in bytes.
pub const REQUEST_MAX_BYTES: u32 = 8 << 20;
/// Connections through the forward proxy at the same time.
pub const PROXY_CONNECTIONS_MAX: usize = 64;
