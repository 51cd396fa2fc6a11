//! Every bound of the agent, in one place. `docs/agent-api.md` tells them to clients.

use std::time::Duration;

/// The vsock port on which the agent serves, and the host's port to which it reports that it does.
pub const AGENT_PORT: u32 = 1024;

/// The longest request line with its headers, in bytes; also the read buffer of a connection.
pub const REQUEST_HEAD_MAX_BYTES: usize = 64 * 1024;
/// The most headers of one request.
pub const REQUEST_HEADERS_MAX_COUNT: usize = 64;
/// The longest JSON body, in bytes. It includes the input of an exec that does not stream.
pub const JSON_BODY_MAX_BYTES: usize = 1024 * 1024;
/// Connections served at the same time, tunnels and streams included.
pub const CONNECTIONS_MAX_COUNT: usize = 256;
/// Commands started over the API that run at the same time.
pub const EXECS_MAX_COUNT: usize = 64;
/// The longest path, in bytes (Linux's PATH_MAX without its NUL).
pub const PATH_MAX_BYTES: usize = 4095;

/// The longest payload of one frame of `rotifer-stream`, in bytes.
pub const FRAME_PAYLOAD_MAX_BYTES: usize = 64 * 1024;
/// Standard input that may be on its way to a process, not yet taken by it, in bytes.
pub const STDIN_WINDOW_BYTES: usize = 256 * 1024;
/// What an exec that does not stream keeps of stdout, and of stderr, in bytes.
pub const EXEC_OUTPUT_MAX_BYTES: usize = 1024 * 1024;
/// How long output is still awaited from background processes that outlive their command.
pub const EXEC_LINGER: Duration = Duration::from_millis(250);
/// The longest time-out that an exec can ask for, in milliseconds: a day.
pub const EXEC_TIMEOUT_MAX_MS: u64 = 24 * 60 * 60 * 1000;

/// The entries of one page of a directory listing.
pub const LIST_PAGE_MAX_COUNT: usize = 1000;
/// The piece in which files are read and written, in bytes.
pub const FILE_CHUNK_BYTES: usize = 256 * 1024;
/// File chunks of one transfer that wait to be sent.
pub const FILE_CHUNKS_QUEUED_COUNT: usize = 2;

/// The longest log line, in bytes; what is longer becomes several lines.
pub const LOG_LINE_MAX_BYTES: usize = 8 * 1024;
/// What the log ring keeps, in bytes, with [`LOG_LINE_OVERHEAD_BYTES`] counted for each line.
pub const LOG_RING_BYTES: usize = 512 * 1024;
/// What a line costs beyond its text, so that empty lines count too.
pub const LOG_LINE_OVERHEAD_BYTES: usize = 64;
/// What the app may write on the console at once, in bytes.
pub const CONSOLE_BURST_BYTES: u64 = 16 * 1024;
/// What the app may write on the console in the long run, in bytes per second.
pub const CONSOLE_RATE_BYTES_PER_S: u64 = 4 * 1024;
/// Console lines that wait for a slow console.
pub const CONSOLE_QUEUE_LINES: usize = 64;

/// How long a tunnel's TCP connection may take.
pub const TUNNEL_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The buffer of each direction of a tunnel, in bytes.
pub const TUNNEL_BUFFER_BYTES: usize = 32 * 1024;
/// How long the host may take to accept the message that the guest is ready.
pub const READY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the app has between SIGTERM and SIGKILL unless a request says otherwise.
pub const SHUTDOWN_GRACE_MS: u64 = 5_000;
/// The longest grace that a request can ask for.
pub const SHUTDOWN_GRACE_MAX_MS: u64 = 60_000;
/// How long the answer to a shutdown request may take to be sent.
pub const SHUTDOWN_ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// The pause after an accept that failed for want of memory or descriptors.
pub const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// How long PID 1 waits for the root disk to appear.
pub const ROOT_DEVICE_TIMEOUT: Duration = Duration::from_secs(30);
/// The largest configuration file (app, passwd, group) that is read, in bytes.
pub const CONFIG_FILE_MAX_BYTES: u64 = 1024 * 1024;
/// Threads for blocking file work.
pub const BLOCKING_THREADS_MAX_COUNT: usize = 8;
/// How long a finished stream waits for the client to close its end.
pub const STREAM_CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Output that is still read after the end of a command, in bytes: the largest pipe there can be.
pub const EXEC_LINGER_BYTES: usize = 1024 * 1024;
