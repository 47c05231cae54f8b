/** PURE. A command as it is typed; quoted where a shell would split it. */
export function typed(words: readonly string[], platform: NodeJS.Platform): string {
  const plain = platform === 'win32' ? /^[\w@+=:,./\\-]+$/ : /^[\w@%+=:,./-]+$/;
  return words.map((word) => (plain.test(word) ? word : quoted(word, platform))).join(' ');
}

function quoted(word: string, platform: NodeJS.Platform): string {
  if (platform === 'win32') return `"${word.replaceAll('"', '\\"')}"`;
  return `'${word.replaceAll("'", "'\\''")}'`;
}
