//! `dormer doctor --client` on machines with a real nix, whatever its version.

use dormer_tests::{Lab, Nix};

#[test]
fn a_machine_that_uses_a_cache_is_healthy_and_a_signature_was_verified() {
    let lab = Lab::start();
    for nix in Nix::ALL {
        let machine = lab.machine(nix.name(), nix);
        machine.login(&lab);
        let all = machine.build("all", &[("salt", nix.name())]);
        machine.dormer(&["push", "main", &all]).succeeds();
        machine.dormer(&["use", "main"]).succeeds();
        let report = machine.dormer(&["doctor", "--client"]).succeeds();
        for words in ["lab answers", "Nix has its address and its key", "the signature of", "verifies"] {
            assert!(report.contains(words), "{}: {words}: {report}", nix.name());
        }
    }
}
