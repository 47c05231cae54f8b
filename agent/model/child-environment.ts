/** What an engine may need of the agent's own environment. Everything else, tokens and systemd's sockets included, stays. */
const ALLOWED = new Set([
  'PATH',
  'HOME',
  'USER',
  'LANG',
  'TMPDIR',
  'LD_LIBRARY_PATH',
  'XDG_CACHE_HOME',
  'TRITON_CACHE_DIR',
  'TORCHINDUCTOR_CACHE_DIR',
  'VLLM_CACHE_ROOT',
]);
const ALLOWED_PREFIXES = ['HF_', 'CUDA_'];

/** The environment of a server: the allowed part of ours, the engine's settings, and the model's own, which wins. */
export function childEnvironment({
  gpus,
  engine,
  model,
}: {
  gpus: readonly string[];
  engine: Record<string, string>;
  model: Record<string, string>;
}): Record<string, string> {
  // eslint-disable-next-line no-restricted-properties -- not configuration: what the child inherits of this process
  const inherited = Object.entries(process.env).filter(
    (entry): entry is [string, string] => entry[1] !== undefined && isAllowed(entry[0]),
  );
  return {
    ...Object.fromEntries(inherited),
    PYTHONUNBUFFERED: '1',
    ...engine,
    ...model,
    // Last: a server on another GPU than planned would take memory that belongs to somebody else.
    CUDA_DEVICE_ORDER: 'PCI_BUS_ID',
    CUDA_VISIBLE_DEVICES: gpus.join(','),
  };
}

function isAllowed(name: string): boolean {
  return ALLOWED.has(name) || ALLOWED_PREFIXES.some((prefix) => name.startsWith(prefix));
}
