//! One path of more than a gigabyte, through a server that may use a quarter of one.

use dormer_tests::{Lab, LabOptions, Nix};

/// What `dormer serve` promises to stay below, whatever is pushed.
const MEMORY_BYTES_MAX: u64 = 256 * 1024 * 1024;

fn lab_with_little_memory() -> Lab {
    Lab::start_with(LabOptions { memory_bytes_max: Some(MEMORY_BYTES_MAX), ..LabOptions::default() })
}

#[test]
fn a_path_of_more_than_a_gigabyte_goes_both_ways_in_bounded_memory() {
    let mut copied_to = lab_with_little_memory();
    let machine = copied_to.machine("machine", Nix::NEWEST);
    machine.set_netrc(copied_to.address(), &copied_to.token(&["--pull", "main", "--push", "main"]));
    let noise = machine.build("noise", &[("salt", "large"), ("megabytes", "1100")]);

    let target = format!("{}?compression=none", copied_to.cache_url("main"));
    machine.run("nix", &["copy", "--to", &target, &noise]).succeeds();
    assert_memory("nix copy", &mut copied_to);

    // A server of its own, because the first one knows the bytes already.
    let mut pushed_to = lab_with_little_memory();
    machine.login(&pushed_to);
    machine.dormer(&["push", "main", &noise]).succeeds();
    assert_memory("dormer push", &mut pushed_to);

    let puller = pushed_to.machine("puller", Nix::NEWEST);
    puller.configure(&[pushed_to.public_key("main")]);
    puller.substitute(&pushed_to.cache_url("main"), &noise).succeeds();
    puller.verify_all();
    // Both keys are called `main`, and Nix knows keys by their names: one at a time.
    puller.delete(std::slice::from_ref(&noise));
    puller.configure(&[copied_to.public_key("main")]);
    puller.substitute(&copied_to.cache_url("main"), &noise).succeeds();
    puller.verify_all();
    assert_memory("pulls", &mut pushed_to);
    assert_memory("pulls", &mut copied_to);
}

#[expect(clippy::print_stdout, reason = "with --nocapture, or after a failure, it tells how much")]
fn assert_memory(after: &str, lab: &mut Lab) {
    assert!(lab.is_alive(), "the server did not survive {after}");
    let peak = lab.peak_memory_bytes();
    println!("peak memory of the server after {after}: {} MiB", peak / 1024 / 1024);
    assert!(peak <= MEMORY_BYTES_MAX, "{peak} bytes after {after}");
}
