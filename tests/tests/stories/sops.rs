//! Secrets in Git: what `dormer secrets init` prints goes through the real sops and age and comes
//! back unchanged, and the age key can be replaced.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test, as it should")]

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use dormer_tests::{Run, binary, part, workspace_root};

fn folder() -> PathBuf {
    workspace_root().join("deploy/kubernetes/secrets")
}

/// sops in a folder, with a key to decrypt with.
fn sops(folder: &Path, key: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(part("sops/bin/sops"));
    command.args(arguments).current_dir(folder).env("SOPS_AGE_KEY_FILE", key);
    command.env("HOME", folder).env("XDG_CONFIG_HOME", folder);
    command
}

fn new_secret() -> String {
    let mut command = Command::new(binary());
    Run::of(command.args(["secrets", "init", "--namespace", "dormer-lab"])).succeeds()
}

/// The lines of a manifest without quotes and indentation: sops writes YAML anew.
fn lines(yaml: &str) -> Vec<String> {
    yaml.lines().map(|line| line.trim().replace('"', "")).filter(|line| !line.is_empty()).collect()
}

fn encrypted(folder: &Path, key: &Path, secret: &str) -> String {
    let mut command = sops(folder, key, &["encrypt", "--filename-override", "secret.sops.yaml"]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(secret.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_example_decrypts_with_the_key_beside_it() {
    let example = fs::read_to_string(folder().join("secret.example.sops.yaml")).unwrap();
    let values: Vec<&str> = example.lines().skip_while(|line| *line != "stringData:").skip(1).collect();
    let values: Vec<&&str> = values.iter().take_while(|line| line.starts_with(' ')).collect();
    assert!(values.len() == 8 && values.iter().all(|line| line.contains(": ENC[AES256_GCM,")), "{values:?}");
    // Names stay readable, so that a diff says what changed.
    assert!(example.contains("kind: Secret") && example.contains("namespace: dormer-lab"));
    let key = folder().join("test-age.key");
    let shown = Run::of(&mut sops(&folder(), &key, &["decrypt", "secret.example.sops.yaml"])).succeeds();
    assert!(shown.contains("database-url: postgresql://dormer:"), "{shown}");
}

#[test]
fn a_new_secret_survives_encryption_and_the_replacement_of_the_age_key() {
    let work = tempfile::tempdir().unwrap();
    let place = work.path();
    let key = |name: &str| {
        let path = place.join(name);
        Run::of(Command::new("/usr/bin/age-keygen").arg("-o").arg(&path)).succeeds();
        let text = fs::read_to_string(&path).unwrap();
        let recipient = text.lines().find_map(|line| line.strip_prefix("# public key: ")).unwrap();
        (path, recipient.to_owned())
    };
    let ((old, old_recipient), (new, new_recipient)) = (key("old.key"), key("new.key"));
    // The configuration of the repository, with another recipient.
    let rules = fs::read_to_string(folder().join(".sops.yaml")).unwrap();
    let test_key = fs::read_to_string(folder().join("test-age.key")).unwrap();
    let test_recipient = test_key.lines().find_map(|line| line.strip_prefix("# public key: ")).unwrap();
    assert!(rules.contains(test_recipient));
    let configure = |recipient: &str| {
        fs::write(place.join(".sops.yaml"), rules.replace(test_recipient, recipient)).unwrap();
    };

    configure(&old_recipient);
    let secret = new_secret();
    let file = place.join("secret.sops.yaml");
    fs::write(&file, encrypted(place, &old, &secret)).unwrap();
    for line in secret.lines().skip_while(|line| *line != "stringData:").skip(1) {
        let value = line.split_once(": ").unwrap().1.trim_matches('"');
        assert!(!fs::read_to_string(&file).unwrap().contains(value), "a value is readable");
    }
    let decrypt = |key: &Path| Run::of(&mut sops(place, key, &["decrypt", "secret.sops.yaml"]));
    assert_eq!(lines(&decrypt(&old).succeeds()), lines(&secret));
    assert!(!decrypt(&new).is_success(), "a stranger's key decrypts");

    // Both keys for a while, and then only the new one, with a new data key: holders of the old
    // key and the old file learn nothing of what is written from then on.
    configure(&format!("{old_recipient},{new_recipient}"));
    Run::of(&mut sops(place, &old, &["updatekeys", "--yes", "secret.sops.yaml"])).succeeds();
    assert_eq!(lines(&decrypt(&new).succeeds()), lines(&secret));
    configure(&new_recipient);
    Run::of(&mut sops(place, &new, &["updatekeys", "--yes", "secret.sops.yaml"])).succeeds();
    Run::of(&mut sops(place, &new, &["rotate", "--in-place", "secret.sops.yaml"])).succeeds();
    assert!(!decrypt(&old).is_success(), "the old key still decrypts");
    assert_eq!(lines(&decrypt(&new).succeeds()), lines(&secret));

    // A changed file is noticed.
    let text = fs::read_to_string(&file).unwrap().replace("namespace: dormer-lab", "namespace: elsewhere");
    fs::write(&file, text).unwrap();
    assert!(!decrypt(&new).is_success(), "a changed file decrypts");
}
