# Adds `dormer` to nixpkgs.
final: _previous: {
  dormer = final.callPackage ./package.nix { };
}
