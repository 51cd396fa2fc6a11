use super::*;
use std::io::Write;
use tempfile::NamedTempFile;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

/// Every name is an image with a path and a command.
struct AnyBase;

impl Bases for AnyBase {
    fn look_up(&self, name: &str) -> Result<BaseInfo, String> {
        if name == "missing" {
            return Err("the base image missing is not on this host".into());
        }
        let config = ImageConfig {
            env: vec!["PATH=/bin".into()],
            cmd: vec!["bash".into()],
            on_build: if name == "triggers" { vec!["RUN x".into()] } else { vec![] },
            ..ImageConfig::default()
        };
        Ok(BaseInfo { digest: format!("sha256:{name}"), config })
    }
}

fn context(files: &[(&str, &str)]) -> (NamedTempFile, Context) {
    let file = NamedTempFile::new().unwrap();
    let mut writer = ZipWriter::new(file.reopen().unwrap());
    for (name, content) in files {
        writer.start_file(*name, SimpleFileOptions::default()).unwrap();
        writer.write_all(content.as_bytes()).unwrap();
    }
    writer.finish().unwrap();
    let context = Context::open(file.path()).unwrap();
    (file, context)
}

const FILES: [(&str, &str); 4] =
    [("app.py", "app"), ("requirements.txt", "flask"), ("src/a.py", "a"), ("src/b.txt", "b")];

fn plan_of(text: &str, files: &[(&str, &str)], args: &[(&str, &str)]) -> Result<Plan, String> {
    let (_file, context) = context(files);
    let args = args.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    let inputs = Inputs { context: &context, bases: &AnyBase, args: &args, disk_bytes: 1 << 30 };
    Plan::new(text, &inputs).map_err(|error| error.to_string())
}

fn plan(text: &str) -> Plan {
    plan_of(text, &FILES, &[]).unwrap()
}

fn refusal(text: &str) -> String {
    plan_of(text, &FILES, &[]).unwrap_err()
}

fn last(plan: &Plan) -> &Stage {
    plan.stages.last().unwrap()
}

fn run(plan: &Plan, index: usize) -> &RunAction {
    match &last(plan).steps[index].action {
        Action::Run(run) => run,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_guides_dockerfile_becomes_five_steps_and_an_app() {
    let plan = plan(
        "FROM public.ecr.aws/lambda/microvms:al2023-minimal\n\
         RUN dnf install -y python3 python3-pip && dnf clean all\n\nWORKDIR /app\n\
         COPY requirements.txt .\nRUN pip install --no-cache-dir -r requirements.txt\n\
         COPY app.py .\n\nEXPOSE 8080\n\
         CMD [\"gunicorn\", \"--bind\", \"0.0.0.0:8080\", \"app:app\"]\n",
    );
    let stage = last(&plan);
    let lines: Vec<usize> = stage.steps.iter().map(|step| step.line).collect();
    assert_eq!(lines, [2, 4, 5, 6, 7, 1]);
    assert_eq!(run(&plan, 3).directory, "/app");
    assert_eq!(run(&plan, 3).command[..2], ["/bin/sh", "-c"]);
    let app = plan.config().unwrap().app().unwrap();
    assert_eq!(app["command"][0], "gunicorn");
    assert_eq!(app["cwd"], "/app");
    assert_eq!(plan.config().unwrap().ports(), [8080].into());
}

#[test]
fn a_key_depends_on_what_the_result_depends_on_and_on_nothing_else() {
    let text = "FROM a\nARG V=1\nRUN make\nCOPY app.py /\nLABEL x=y\nCMD []\n";
    let keys = |text: &str, files: &[(&str, &str)], args: &[(&str, &str)]| -> Vec<Key> {
        let plan = plan_of(text, files, args).unwrap();
        last(&plan).steps.iter().map(|step| step.key.clone()).collect()
    };
    let before = keys(text, &FILES, &[]);
    assert_eq!(before, keys(text, &FILES, &[]));
    // Another label, another file that is not copied: the same.
    let label = text.replace("x=y", "x=z");
    assert_eq!(before, keys(&label, &FILES, &[]));
    let mut files = FILES;
    files[1].1 = "django";
    assert_eq!(before, keys(text, &files, &[]));
    // A file that is copied: from there on.
    files[0].1 = "other";
    let changed = keys(text, &files, &[]);
    assert!(changed[0] == before[0] && changed[1] != before[1]);
    // An argument in scope, another base: all.
    assert!(keys(text, &FILES, &[("V", "2")])[0] != before[0]);
    assert!(keys(&text.replace("FROM a", "FROM b"), &FILES, &[])[0] != before[0]);
}

#[test]
fn arguments_and_variables_are_what_buildkit_documents() {
    let text = "ARG V=1\nARG U\nFROM a:$V\nARG V\nARG W=$V-w\nENV E=${W}x F=$E\nENV V2 $V two\n\
                RUN x\nARG E=arg\nWORKDIR /$E\n";
    let plan = plan(text);
    assert_eq!(last(&plan).start, Root::Base { name: "a:1".into(), digest: "sha256:a:1".into() });
    let env = &run(&plan, 0).env;
    assert_eq!((env["V"].as_str(), env["W"].as_str(), env["E"].as_str()), ("1", "1-w", "1-wx"));
    // Values of one instruction see what was before it.
    assert_eq!((env["F"].as_str(), env["V2"].as_str()), ("", "1 two"));
    assert!(!env.contains_key("U"));
    // A variable goes before an argument of its name.
    assert_eq!(plan.config().unwrap().working_dir, "/1-wx");
    let given = plan_of(text, &FILES, &[("V", "9"), ("UNKNOWN", "x")]).unwrap();
    assert_eq!(run(&given, 0).env["V"], "9");
    // Arguments end with their stage, and are no part of the image.
    assert_eq!(given.config().unwrap().variable("W"), None);
    let two = plan_of("FROM a\nARG X=1\nFROM a\nRUN echo $X\n", &FILES, &[]).unwrap();
    assert!(!run(&two, 0).env.contains_key("X"));
}

#[test]
fn only_stages_that_are_needed_are_built() {
    let plan = plan(
        "FROM a AS build\nRUN make\nFROM a AS unused\nRUN never\nFROM build AS test\nRUN never\n\
         FROM scratch\nCOPY --from=build /out /\nCOPY --from=image:1 /x /y\n",
    );
    let needed: Vec<usize> = plan.needed().map(|(index, _)| index).collect();
    assert_eq!(needed, [0, 3]);
    assert_eq!(last(&plan).copied_roots().len(), 2);
    assert_eq!(plan.step_count(), 2 + 3);
}

#[test]
fn directories_stand_for_their_content_and_patterns_for_what_they_find() {
    let items = |text: &str| -> (Vec<String>, Target) {
        let plan = plan(&format!("FROM a\nWORKDIR /w\n{text}\n"));
        match &last(&plan).steps[1].action {
            Action::CopyItems { items, target } => {
                (items.iter().map(|item| item.name.clone()).collect(), target.clone())
            }
            other => panic!("{other:?}"),
        }
    };
    let (names, target) = items("COPY src lib");
    assert_eq!(names, ["a.py", "b.txt"]);
    assert_eq!((target.path.as_str(), target.is_directory), ("/w/lib", true));
    assert_eq!(items("COPY *.py src/*.py ./").0, ["app.py", "a.py"]);
    let (names, target) = items("COPY --chown=web:www --chmod=750 app.py /x");
    assert_eq!(names, ["app.py"]);
    assert_eq!((target.owner.as_deref(), target.mode), (Some("web:www"), Some(0o750)));
    assert!(!target.is_directory);
    assert_eq!(items("COPY [\"app.py\", \"/a b/\"]").1.path, "/a b");
    assert_eq!(items("COPY . .").0.len(), 5);
}

#[test]
fn an_entrypoint_forgets_an_inherited_command() {
    let command = |text: &str| {
        let plan = plan(text);
        let config = plan.config().unwrap();
        [config.entrypoint.clone(), config.cmd.clone()].concat().join(" ")
    };
    assert_eq!(command("FROM a\n"), "bash");
    assert_eq!(command("FROM a\nENTRYPOINT [\"e\"]\n"), "e");
    assert_eq!(command("FROM a\nCMD [\"c\"]\nENTRYPOINT [\"e\"]\n"), "e c");
    assert_eq!(command("FROM a\nENTRYPOINT []\nCMD x $Y\n"), "/bin/sh -c x $Y");
    assert_eq!(command("FROM a\nSHELL [\"/bin/bash\", \"-ec\"]\nCMD x\n"), "/bin/bash -ec x");
}

#[test]
fn here_documents_are_commands_scripts_and_files() {
    let plan = plan(
        "FROM a\nARG N=1\nRUN <<EOF\nset -e\necho $N\nEOF\nRUN <<EOF\n#!/usr/bin/python3\nEOF\n\
         COPY <<EOF /etc/conf\nn=$N\nEOF\nCOPY <<'EOF' /etc/raw\nn=$N\nEOF\n",
    );
    assert_eq!(run(&plan, 0).command[2], "set -e\necho $N\n");
    assert_eq!(run(&plan, 1).script.as_deref(), Some("#!/usr/bin/python3\n"));
    let text = |index: usize| match &last(&plan).steps[index].action {
        Action::Write { text, .. } => text.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!((text(2).as_str(), text(3).as_str()), ("n=1\n", "n=$N\n"));
}

#[test]
fn mounts_are_caches_and_memory() {
    let plan = plan(
        "FROM a\nWORKDIR /w\nRUN --mount=type=cache,target=c,id=pip,sharing=locked --mount=type=tmpfs,target=/t,size=1m x\n",
    );
    let mounts = &run(&plan, 1).mounts;
    assert_eq!(mounts[0].target, "/w/c");
    assert_eq!(
        mounts[1].kind,
        rotifer_build_worker::protocol::MountKind::Tmpfs { size_bytes: Some(1 << 20) }
    );
}

#[test]
fn what_is_not_supported_fails_by_its_line_with_the_reason() {
    for (text, line, reason) in [
        ("FROM missing\n", 1, "not on this host"),
        ("FROM triggers\n", 1, "ONBUILD"),
        ("FROM --platform=linux/amd64 a\n", 1, "linux/amd64"),
        ("FROM $NONE\n", 1, "empty"),
        ("FROM a\n\nRUN --mount=type=secret,id=x y\n", 3, "type=secret"),
        ("FROM a\nRUN --mount=type=ssh y\n", 2, "type=ssh"),
        ("FROM a\nRUN --mount=type=bind,target=/x y\n", 2, "type=bind"),
        ("FROM a\nRUN --network=host y\n", 2, "--network=host"),
        ("FROM a\nRUN --security=insecure y\n", 2, "--security=insecure"),
        ("FROM a\nRUN --device=x y\n", 2, "--device"),
        ("FROM a\nONBUILD RUN x\n", 2, "ONBUILD"),
        ("FROM a\nCOPY --parents app.py /\n", 2, "--parents"),
        ("FROM a\nCOPY none /\n", 2, "\"none\" is not in the archive"),
        ("FROM a\nCOPY *.none /\n", 2, "nothing in the archive matches"),
        ("FROM a\nCOPY app.py requirements.txt /x\n", 2, "end with a slash"),
        ("FROM a\nCOPY --chmod=u+x app.py /\n", 2, "octal"),
        ("FROM a\nCOPY --from=missing /x /\n", 2, "not on this host"),
        ("FROM a\nADD https://example.org/x /\n", 2, "fetch it with RUN"),
        ("FROM a\nEXPOSE 99999\n", 2, "not a port"),
        ("FROM a\nENV A\n", 2, "no value"),
        ("FROM a\nENV A=${x:?gone}\n", 2, "gone"),
        ("FROM a\nFRUM b\n", 2, "FRUM"),
    ] {
        let error = refusal(text);
        assert!(
            error.starts_with(&format!("Dockerfile line {line}: ")) && error.contains(reason),
            "{text:?}: {error}"
        );
    }
}

#[test]
fn a_tar_is_unpacked_by_add_and_not_by_copy() {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(1);
    tar.append_data(&mut header, "x", &b"x"[..]).unwrap();
    let bytes = tar.into_inner().unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let files = [("a.tar", text.as_str()), ("plain.gz", "no tar")];
    let action = |word: &str| {
        let plan = plan_of(&format!("FROM a\n{word} /x\n"), &files, &[]).unwrap();
        last(&plan).steps[0].action.clone()
    };
    assert!(matches!(action("ADD a.tar"), Action::Extract { .. }));
    assert!(matches!(action("COPY a.tar"), Action::CopyItems { .. }));
    assert!(matches!(action("ADD plain.gz"), Action::CopyItems { .. }));
}
