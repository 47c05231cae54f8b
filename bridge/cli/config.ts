import { EXIT } from '../../shared/exit-codes.ts';
import { clipped, tableLines } from '../../shared/screen-text.ts';
import type { Setting } from '../config-origins.ts';
import type { Session } from '../session.ts';
import { printJson, printLines } from './screen.ts';

/** `gantry config show`: every setting as it holds now, and where it comes from. */
export async function showConfig({ screen, settings }: Session): Promise<void> {
  if (screen.isJson) printJson(screen, { schema: 1, settings: settings.map(({ words: _, ...setting }) => setting) });
  else printLines(screen, settingLines(settings, screen.out.columns));
}

export function settingLines(settings: readonly Setting[], columns: number | undefined): string[] {
  const rows = settings.map(({ key, words, origin, where }) => [key, words, where ?? origin]);
  return tableLines([['KEY', 'VALUE', 'FROM'], ...rows]).map((line) => clipped(line, columns));
}

/** `gantry config check`: a file with a problem has ended the command before this, with all of them. */
export async function checkConfig({ screen, config }: Session): Promise<number> {
  const { file, expectedFile, hosts } = config;
  const names = hosts.map(({ name }) => name);
  if (screen.isJson)
    printJson(screen, {
      schema: 1,
      ok: file !== undefined,
      file: file ?? null,
      expected_file: expectedFile,
      hosts: names,
    });
  if (file === undefined) {
    screen.complain(`gantry: there is no ${expectedFile}. Write it with your hosts: README.md, "Set up the laptop".\n`);
    return EXIT.config;
  }
  const known = names.join(', ') || 'none yet; add one under `hosts`';
  if (!screen.isJson) printLines(screen, [`${file}: no problem found. Hosts: ${known}.`]);
  return EXIT.ok;
}
