# Stands for nixpkgs where nix/ is evaluated without it: see lib.nix.
{
  outputs =
    { self }:
    rec {
      lib = import ./lib.nix;
      legacyPackages = lib.genAttrs [ "x86_64-linux" "aarch64-linux" ] (system: import ./pkgs.nix { inherit system; });
    };
}
