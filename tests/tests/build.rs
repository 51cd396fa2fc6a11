//! Image builds: the guide's three files become a root disk in build machines, and its app answers.
//!
//! hosts: gicv3
#![cfg(target_arch = "aarch64")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::env;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rotifer_build::{BuildRequest, Builder, Built, Failure, ReasonCode, Settings};
use rotifer_tests::{Artifacts, VmBuilder};
use serde_json::json;
use tempfile::TempDir;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

const APP: &str = r#"
import logging
from flask import Flask, jsonify

app = Flask(__name__)
logging.basicConfig(level=logging.INFO)

@app.route("/")
def hello():
    app.logger.info("Received request")
    return jsonify(message="Hello from Lambda MicroVM!")
"#;

/// As the guide has it, on a Debian in place of Amazon's Linux.
const DOCKERFILE: &str = r#"
FROM public.ecr.aws/lambda/microvms:al2023-minimal
ENV PIP_BREAK_SYSTEM_PACKAGES=1

WORKDIR /app
COPY requirements.txt .
RUN pip install --no-cache-dir --no-compile -r requirements.txt
COPY app.py .

EXPOSE 8080
CMD ["gunicorn", "--bind", "0.0.0.0:8080", "app:app"]
"#;

/// What the instructions can do, observed by commands that fail if they cannot.
const RICH: &str = r#"
FROM scratch AS parts
COPY <<EOF /etc/made
made by a here-document
EOF
COPY --chmod=750 app.py /deep/er/

FROM public.ecr.aws/lambda/microvms:al2023-minimal
ARG COLOUR=red
ENV SEEN=$COLOUR
SHELL ["/bin/bash", "-ec"]
COPY --from=parts --chown=www-data:games /deep /srv/deep
COPY --from=parts /etc/made /srv/
ADD bundle.tar /opt
RUN [[ "$SEEN" == blue ]] && [[ $(stat -c %U:%G:%a /srv/deep/er/app.py) == www-data:games:750 ]]
RUN grep here-document /srv/made && [[ $(cat /opt/inside) == packed ]] && [[ ! -e /opt/bundle.tar ]]
USER www-data
WORKDIR /srv/work
RUN --mount=type=cache,target=/cache,uid=33 --mount=type=tmpfs,target=/scratch <<EOF
id -un | grep www-data
touch /cache/kept /scratch/lost mine
echo $$ > pid
test $(cat pid) = 1
test -w /dev/null
EOF
USER root
RUN <<EOF
#!/usr/bin/python3
import os
assert not os.path.exists("/scratch/lost") and not os.path.exists("/cache/kept")
assert os.path.exists("/srv/work/mine")
print("the script ran as", os.getuid())
EOF
RUN --network=none ! (exec 3<>/dev/tcp/127.0.0.1/3128)
RUN echo before && exit 7
"#;

/// A builder whose store is on the host's disk, with the base image of the artifacts.
struct Site {
    directory: TempDir,
    builder: Builder,
}

impl Site {
    fn new() -> Self {
        let disk = Path::new("/var/rotifer");
        let place = if disk.is_dir() { disk.to_path_buf() } else { env::temp_dir() };
        let directory = TempDir::new_in(place).unwrap();
        let found = Artifacts::find();
        let made = found.kernel.parent().unwrap();
        let store = directory.path().join("store");
        for name in ["bases", "layers"] {
            fs::create_dir_all(store.join(name)).unwrap();
            for entry in fs::read_dir(made.join("build-store").join(name)).unwrap() {
                let path = entry.unwrap().path();
                symlink(&path, store.join(name).join(path.file_name().unwrap())).unwrap();
            }
        }
        // Build machines start from it again and again: not through the share of the checkout.
        let builder_disk = directory.path().join("builder.ext4");
        rotifer_build::disks::copy(&found.debian, &builder_disk).unwrap();
        let settings = json!({
            "vmm": found.vmm, "kernel": found.kernel, "initramfs": found.initramfs,
            "builder_disk": builder_disk, "worker": made.join("rotifer-build-worker"),
            "store": store, "disk_bytes": 2_u64 << 30, "vcpu_count": 1, "memory_mib": 768,
            "aliases": { "public.ecr.aws/lambda/microvms:al2023-minimal": "python:3.11" },
            "network_file": made.join("network.json"),
        });
        let file = directory.path().join("settings.json");
        fs::write(&file, settings.to_string()).unwrap();
        let builder = Builder::new(Settings::read(&file).unwrap()).unwrap();
        Self { directory, builder }
    }

    fn disk(&self) -> PathBuf {
        self.directory.path().join("app.ext4")
    }

    /// Builds; what it said, and the result.
    fn build(
        &self,
        files: &[(&str, &[u8])],
        args: &[(&str, &str)],
    ) -> (String, Result<Built, Failure>) {
        let archive = self.directory.path().join("app.zip");
        let mut writer = ZipWriter::new(fs::File::create(&archive).unwrap());
        for (name, content) in files {
            writer.start_file(*name, SimpleFileOptions::default()).unwrap();
            writer.write_all(content).unwrap();
        }
        writer.finish().unwrap();
        let args = args.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let disk = self.disk();
        let request = BuildRequest { archive, disk, args, ..BuildRequest::default() };
        let mut said = String::new();
        let started = std::time::Instant::now();
        let result = self.builder.build(&request, &mut |event| {
            let line = event.to_string();
            println!("{:6.1} {line}", started.elapsed().as_secs_f64());
            said.push_str(&line);
            said.push('\n');
        });
        println!("{:6.1} the build has ended", started.elapsed().as_secs_f64());
        (said, result)
    }
}

#[test]
fn the_guides_three_files_become_an_app_that_answers_and_a_second_build_runs_nothing() {
    let site = Site::new();
    let mut files = vec![
        ("Dockerfile", DOCKERFILE.as_bytes()),
        ("requirements.txt", b"flask\ngunicorn\n"),
        ("app.py", APP.as_bytes()),
    ];
    let (said, result) = site.build(&files, &[]);
    let built = result.unwrap_or_else(|error| panic!("{}\n{said}", error.text()));
    assert!(said.contains("Successfully installed"), "{said}");
    assert_eq!((built.done_count, built.cached_count), (6, 0), "{said}");

    let (said, again) = site.build(&files, &[]);
    let again = again.unwrap();
    assert_eq!((again.done_count, again.cached_count), (0, 6), "{said}");
    assert_eq!(again.key, built.key);

    // Only what comes after the change is done.
    let changed = APP.replace("Hello from", "Greetings from");
    files[2].1 = changed.as_bytes();
    let (said, third) = site.build(&files, &[]);
    assert_eq!(third.unwrap().done_count, 2, "{said}");

    let mut vm = VmBuilder::new()
        .memory_mib(512)
        .drive("root", &site.disk(), false)
        .boot_args("rotifer.root=/dev/vda rotifer.rootfstype=ext4 rw")
        .start();
    vm.await_web_app();
    let mut tunnel = vm.agent_client().tunnel("localhost:8080").unwrap();
    tunnel.write_all(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = String::new();
    tunnel.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("Greetings from Lambda MicroVM!"), "{answer}\n{}", vm.report());
    // Nothing of the build's network is in the image.
    let traces = vm.shell("grep -rl 127.0.0.1:3128 /etc /root /app /usr/local || true; ls -A /dev/rotifer* 2>/dev/null || true; env");
    assert!(!traces.contains("rotifer-") && !traces.contains("proxy"), "{traces}");
}

#[test]
fn instructions_do_what_they_say_and_a_failing_command_is_named_by_its_line() {
    let site = Site::new();
    let mut header = tar_header("inside", 6);
    header.extend_from_slice(b"packed");
    header.resize(512 * 4, 0);
    let files = [("Dockerfile", RICH.as_bytes()), ("app.py", b"app"), ("bundle.tar", &header[..])];
    let (said, result) = site.build(&files, &[("COLOUR", "blue")]);
    let error = result.unwrap_err();
    let line = RICH.lines().position(|line| line.contains("exit 7")).unwrap() + 1;
    assert!(
        matches!(error, Failure::Command { code: 7, line: at, .. } if at == line),
        "{}\n{said}",
        error.text()
    );
    assert_eq!(error.code(), ReasonCode::ContainerBuildFailed);
    assert!(said.contains("the script ran as 0") && said.contains("before"), "{said}");
    let hostile = [("Dockerfile", &b"FROM scratch\n"[..]), ("../../etc/passwd", b"x")];
    assert_eq!(site.build(&hostile, &[]).1.unwrap_err().code(), ReasonCode::ArchiveInvalid);
    let none = site.build(&[("app.py", b"")], &[]).1.unwrap_err();
    assert_eq!(none.code(), ReasonCode::ArchiveDockerfileNotFound);
}

/// The header of one file in a tar, in the old form that every program reads.
fn tar_header(name: &str, length: usize) -> Vec<u8> {
    let mut header = vec![0; 512];
    let mut put =
        |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000644");
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{length:011o}"));
    put(136, "00000000000");
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}
