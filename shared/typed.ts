/** PURE. A command as it is typed; quoted where a shell would split it. */
export function typed(words: readonly string[], platform: NodeJS.Platform): string {
  const plain = platform === 'win32' ? /^[\w@+=:,./\\-]+$/ : /^[\w@%+=:,./-]+$/;
  return words.map((word) => (plain.test(word) ? word : quoted(word, platform))).join(' ');
}

/** PURE. Flags as they are typed behind a command: empty where none has a value, else it begins with a blank. */
export function typedFlags(flags: Readonly<Record<string, string | undefined>>, platform: NodeJS.Platform): string {
  const words = Object.entries(flags).flatMap(([name, value]) => (value === undefined ? [] : [`--${name}`, value]));
  return words.length === 0 ? '' : ` ${typed(words, platform)}`;
}

function quoted(word: string, platform: NodeJS.Platform): string {
  if (platform === 'win32') return `"${word.replaceAll('"', '\\"')}"`;
  return `'${word.replaceAll("'", "'\\''")}'`;
}
