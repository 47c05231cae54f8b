/** The package has no types. It runs `nvidia-smi -q -x` from the PATH and turns the XML into an object. */
declare module 'node-nvidia-smi' {
  function readInventory(callback: (error: unknown, inventory: unknown) => void): void;
  export = readInventory;
}
