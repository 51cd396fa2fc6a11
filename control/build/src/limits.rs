//! Every bound of a build but those of its worker (`rotifer_build_worker::limits`). `docs/image-builds.md`
//! tells them to users.

/// The largest archive, in bytes.
pub const ARCHIVE_MAX_BYTES: u64 = 2 << 30;
/// The most files, directories and links of an archive.
pub const ARCHIVE_ENTRIES_MAX: usize = 100_000;
/// What all files of an archive may have together when unpacked, in bytes.
pub const CONTEXT_MAX_BYTES: u64 = 8 << 30;
/// The longest path inside an archive, in bytes (Linux's PATH_MAX without its NUL).
pub const PATH_MAX_BYTES: usize = 4095;
/// The longest name of a file, in bytes (Linux's NAME_MAX).
pub const NAME_MAX_BYTES: usize = 255;
/// The largest Dockerfile and the largest `.dockerignore`, in bytes.
pub const DOCKERFILE_MAX_BYTES: u64 = 1 << 20;
/// The most patterns of a `.dockerignore`.
pub const IGNORE_PATTERNS_MAX: usize = 1000;
/// The most instructions of a Dockerfile.
pub const INSTRUCTIONS_MAX: usize = 1000;
/// The most stages of a Dockerfile.
pub const STAGES_MAX: usize = 64;
/// Other stages and images whose files one stage copies; each is a drive of its machine.
pub const STAGE_SOURCES_MAX: usize = 10;
/// The most links that are followed to find one file.
pub const LINKS_MAX: usize = 40;
/// The longest result of a substitution, in bytes: variables can grow by repeating themselves.
pub const EXPANDED_MAX_BYTES: usize = 1 << 20;
/// The longest value in which `${name#pattern}` and its like look, in bytes.
pub const PATTERN_VALUE_MAX_BYTES: usize = 256;
/// The longest pattern of these, in bytes.
pub const PATTERN_MAX_BYTES: usize = 64;
/// The deepest nesting of `${a:-${b:-...}}`.
pub const EXPAND_DEPTH_MAX: usize = 16;

/// The most layers of a base image.
pub const LAYERS_MAX: usize = 128;
/// The largest manifest, index or configuration of an image, in bytes.
pub const MANIFEST_MAX_BYTES: u64 = 4 << 20;

/// What is passed on of one build's output, in bytes. What comes after is counted.
pub const LOG_MAX_BYTES: usize = 16 << 20;

/// The longest head of a request to the forward proxy, in bytes.
pub const PROXY_HEAD_MAX_BYTES: usize = 64 << 10;
/// The most header lines of such a request.
pub const PROXY_HEADERS_MAX: usize = 100;
