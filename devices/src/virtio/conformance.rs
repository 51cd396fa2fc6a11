//! One suite that every device passes.
