//! Options of instructions: those that are known, and a refusal of all others by name.

use super::hex;
use parse_dockerfile::Flag;
use rotifer_build_worker::glob;
use rotifer_build_worker::protocol::{Mount, MountKind};
use sha2::{Digest as _, Sha256};

/// Refuses options that the instruction does not have, or that we do not.
///
/// # Errors
/// Which one, for people.
pub fn check(flags: &[Flag], known: &[&str]) -> Result<(), String> {
    for (index, flag) in flags.iter().enumerate() {
        let name = flag.name.value.as_ref();
        if !known.contains(&name) {
            return Err(format!("the option --{name} is not supported"));
        }
        let is_repeated = flags.iter().take(index).any(|other| other.name.value == name);
        if is_repeated && name != "mount" {
            return Err(format!("the option --{name} is given twice"));
        }
    }
    Ok(())
}

/// `type=cache,target=/x,...` or `type=tmpfs,...`.
///
/// # Errors
/// What is wrong with it or not supported, for people.
pub fn mount(text: &str, directory: &str) -> Result<Mount, String> {
    let (mut kind, mut target, mut id, mut size_bytes) = ("bind", None, None, None);
    let (mut mode, mut uid, mut gid) = (0o755, 0, 0);
    for field in text.split(',') {
        let (name, value) = field.split_once('=').unwrap_or((field, ""));
        let number = |radix| {
            u32::from_str_radix(value, radix)
                .map_err(|_| format!("--mount: {name}={value:?} is not a number"))
        };
        match name {
            "type" => kind = value,
            "target" | "dst" | "destination" => {
                target = Some(super::absolute(directory, value));
            }
            "id" => id = Some(value),
            "size" => size_bytes = Some(size(value)?),
            "mode" => mode = number(8)?,
            "uid" => uid = number(10)?,
            "gid" => gid = number(10)?,
            // One build at a time has the caches, which is what `locked` wants and the others allow.
            "sharing" if matches!(value, "shared" | "locked" | "private") => {}
            _ => return Err(format!("--mount: {field:?} is not supported")),
        }
    }
    let is_foreign = (kind == "tmpfs" && id.is_some()) || (kind == "cache" && size_bytes.is_some());
    if !matches!(kind, "cache" | "tmpfs") {
        return Err(format!("--mount=type={kind} is not supported; cache and tmpfs are"));
    }
    if is_foreign {
        return Err(format!("--mount=type={kind} has no such field: {text:?}"));
    }
    let target = target.ok_or_else(|| format!("--mount={text} has no target"))?;
    if glob::clean(&target).is_empty() {
        return Err("--mount: the root cannot be mounted over".into());
    }
    let kind = match kind {
        "tmpfs" => MountKind::Tmpfs { size_bytes },
        _ => {
            let digest = Sha256::digest(id.unwrap_or(&target).as_bytes());
            MountKind::Cache {
                directory: hex(digest.get(..16).unwrap_or_default()),
                mode,
                uid,
                gid,
            }
        }
    };
    Ok(Mount { target, kind })
}

/// Bytes, or with a unit: `64m`.
fn size(text: &str) -> Result<u64, String> {
    let lower = text.to_ascii_lowercase();
    let digits = lower.trim_end_matches(|character: char| !character.is_ascii_digit());
    let unit = match lower.get(digits.len()..).unwrap_or_default() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        _ => 0,
    };
    let bytes = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    bytes.filter(|_| unit > 0).ok_or_else(|| format!("--mount: {text:?} is not a size"))
}

/// Permissions in octal.
///
/// # Errors
/// It is something else.
pub fn permissions(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o7777)
        .ok_or_else(|| format!("--chmod={text}: only octal permissions are supported, as in 755"))
}
