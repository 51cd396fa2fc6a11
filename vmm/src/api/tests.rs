//! The API from bytes to answers, over real Unix sockets where sockets matter.

mod controller;
mod http;
mod route;
mod server;
mod socket;
