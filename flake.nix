# The package, an overlay, and modules for NixOS. docs/NIXOS.md explains the modules.
#
# There is no flake.lock in the repository: the flake that uses this one chooses nixpkgs
# (`inputs.dormer.inputs.nixpkgs.follows = "nixpkgs"`). It must have Rust 1.95 or newer.
{
  description = "Dormer, a self-hosted Nix binary cache";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;
      systems = [
        "x86_64-linux"
        "aarch64-linux"
      ];
      forAllSystems = function: lib.genAttrs systems (system: function nixpkgs.legacyPackages.${system});
      # A module of a flake uses the package of that flake, unless the configuration names another.
      withPackage = module: {
        imports = [
          module
          ./nix/modules/default-package.nix
        ];
      };
    in
    {
      packages = forAllSystems (pkgs: rec {
        dormer = pkgs.callPackage ./nix/package.nix { };
        default = dormer;
      });

      overlays.default = import ./nix/overlay.nix;

      nixosModules = {
        # A read-write cache: `services.dormer`.
        server = withPackage ./nix/modules/server.nix;
        # Copies of caches at the edge: `services.dormer.publisher`.
        publisher = withPackage ./nix/modules/publisher.nix;
        # A machine that substitutes from caches: `programs.dormer`.
        client = withPackage ./nix/modules/client.nix;
        # A machine that pushes what it builds: `programs.dormer.queue`.
        queue = withPackage ./nix/modules/queue.nix;
        default = withPackage ./nix/modules;
      };
    };
}
