//! The Worker in workerd, by worker/test/serve.mjs: one process of Node that starts workerd and
//! fills its bucket.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::Published;
use crate::{part, parts, workspace_root};

/// What runs in workerd.
#[derive(Debug, Clone, Default)]
pub enum Script {
    /// The Worker as `scripts/build-worker.sh` has built it.
    #[default]
    Worker,
    /// Another script, alone in its folder.
    File(PathBuf),
}

/// How a workerd is set up.
#[derive(Debug, Clone, Default)]
pub struct WorkerdOptions {
    /// What runs in it.
    pub script: Script,
    /// The Worker's variables and secrets.
    pub variables: Vec<(String, String)>,
    /// Whether the Cache API forgets everything, as on `workers.dev`.
    pub without_cache: bool,
}

/// A running workerd with an R2 bucket. It ends on drop.
#[derive(Debug)]
pub struct Workerd {
    address: String,
    process: Child,
    pipes: Mutex<Option<(ChildStdin, BufReader<ChildStdout>)>>,
    /// Holds the settings, and what the bucket simulates with.
    _folder: TempDir,
}

impl Workerd {
    /// Starts one and puts every file of a published folder into its bucket.
    pub fn start(published: &Published, options: &WorkerdOptions) -> Self {
        let folder = tempfile::Builder::new().prefix("workerd-").tempdir_in(parts::scratch_folder());
        let folder = folder.expect("a folder");
        let (entry, count) = match &options.script {
            Script::Worker => {
                let entry = workspace_root().join("worker/dist/index.js");
                assert!(entry.exists(), "no {}: run ./test, or scripts/build-worker.sh", entry.display());
                (entry, true)
            }
            Script::File(path) => (path.clone(), false),
        };
        let variables: serde_json::Map<String, Value> =
            options.variables.iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect();
        let settings = json!({
            "script": entry, "variables": variables, "cache": !options.without_cache, "count": count,
        });
        let settings_path = folder.path().join("settings.json");
        std::fs::write(&settings_path, settings.to_string()).expect("a file can be written");
        let mut process = Command::new("node")
            .arg(workspace_root().join("worker/test/serve.mjs"))
            .arg(&settings_path)
            .env("DORMER_NODE_MODULES", part("worker-node/node_modules"))
            .env("TMPDIR", folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("node runs");
        let stdin = process.stdin.take().expect("it is piped");
        let mut stdout = BufReader::new(process.stdout.take().expect("it is piped"));
        let first = read_line(&mut stdout);
        let url = first["url"].as_str().expect("the first line has the address").to_owned();
        let address = url.trim_start_matches("http://").trim_end_matches('/').to_owned();
        let workerd = Self { address, process, pipes: Mutex::new(Some((stdin, stdout))), _folder: folder };
        for (name, path) in published.files() {
            workerd.put(&name, &path);
        }
        workerd.calls();
        workerd
    }

    /// Host and port.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Process id of Node, whose child is workerd.
    pub fn process_id(&self) -> u32 {
        self.process.id()
    }

    /// Puts a file into the bucket.
    pub fn put(&self, key: &str, file: &Path) {
        self.order(&json!({ "put": key, "file": file }));
    }

    /// Deletes an object.
    pub fn delete(&self, key: &str) {
        self.order(&json!({ "delete": key }));
    }

    /// Puts a file in place of the object that the Worker asks the size of next, just before it
    /// does.
    pub fn grow(&self, file: &Path) {
        self.order(&json!({ "grow": true, "file": file }));
    }

    /// Lets every request to R2 fail, or no longer.
    pub fn fail(&self, fails: bool) {
        self.order(&json!({ "fail": fails }));
    }

    /// The Worker's requests to R2 since the last time: method and key.
    pub fn calls(&self) -> Vec<(String, String)> {
        let answer = self.order(&json!({ "calls": true }));
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let calls = answer["calls"].as_array().expect("a list");
        calls.iter().map(|call| (text(&call[0]), text(&call[1]))).collect()
    }

    fn order(&self, order: &Value) -> Value {
        let mut pipes = self.pipes.lock().expect("no order panics");
        let (stdin, stdout) = pipes.as_mut().expect("the pipes are there until the drop");
        writeln!(stdin, "{order}").expect("the runner reads");
        let answer = read_line(stdout);
        assert!(answer["error"].is_null(), "{order}: {answer}");
        answer
    }
}

impl Drop for Workerd {
    fn drop(&mut self) {
        // The runner ends with its input, and workerd with the runner.
        self.pipes.lock().map(|mut pipes| pipes.take()).ok();
        if let Err(error) = self.process.wait() {
            assert!(std::thread::panicking(), "the runner cannot be waited for: {error}");
        }
    }
}

fn read_line(stdout: &mut BufReader<ChildStdout>) -> Value {
    let mut line = String::new();
    stdout.read_line(&mut line).expect("the runner writes text");
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("the runner said {line:?}: {error}"))
}
