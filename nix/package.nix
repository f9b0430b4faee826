# The `dormer` binary. All crates come from crates.io, so Cargo.lock is the only pin.
{
  lib,
  stdenv,
  rustPlatform,
  installShellFiles,
}:

let
  root = ../.;
  manifest = lib.importTOML ../Cargo.toml;
in
rustPlatform.buildRustPackage {
  pname = "dormer";
  inherit (manifest.workspace.package) version;

  # Only what Cargo reads: a change of a document builds nothing anew.
  src = lib.fileset.toSource {
    inherit root;
    fileset = lib.fileset.unions [
      ../Cargo.toml
      ../Cargo.lock
      ../crates
      ../bench/Cargo.toml
      ../bench/src
      ../tests/Cargo.toml
      ../tests/src
    ];
  };

  cargoLock.lockFile = ../Cargo.lock;

  buildAndTestSubdir = "crates/cli";

  nativeBuildInputs = [ installShellFiles ];

  # The binary writes its completions and manual pages, so it must run where it is built.
  postInstall = lib.optionalString (stdenv.buildPlatform.canExecute stdenv.hostPlatform) ''
    installShellCompletion --cmd dormer \
      --bash <($out/bin/dormer completions bash) \
      --zsh <($out/bin/dormer completions zsh) \
      --fish <($out/bin/dormer completions fish)
    $out/bin/dormer man --to man1
    installManPage man1/*.1
  '';

  # The tests want PostgreSQL, S3 servers and several versions of Nix: `./test` runs them.
  doCheck = false;

  meta = {
    description = "Self-hosted Nix binary cache with a read-only copy at the edge";
    license = lib.licenses.asl20;
    platforms = lib.platforms.linux;
    mainProgram = "dormer";
  };
}
