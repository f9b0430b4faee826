# Brings `pkgs.dormer`, the default of every `package` option here.
{
  nixpkgs.overlays = [ (import ../overlay.nix) ];
}
