import type { McpClient, Places, Start } from '../../bridge/cli/clients.ts';
import { CLIENTS, snippetOf } from '../../bridge/cli/clients.ts';
import { typed } from '../../shared/typed.ts';

/** For reading: nobody's own paths. */
const START: Start = { command: 'node', args: ['/path/to/gantry/dist/gantry.cjs', 'bridge'] };
const COMMON = { home: '~', configHome: '~/.config', appData: '%APPDATA%', localAppData: '%LOCALAPPDATA%' };
const PLACES: readonly [system: string, places: Places][] = [
  ['Linux', { ...COMMON, platform: 'linux' }],
  ['macOS', { ...COMMON, platform: 'darwin' }],
  ['Windows', { ...COMMON, platform: 'win32', home: '%USERPROFILE%' }],
];

/** A section for each client: commands, files and the snippet, from the definitions that `gantry clients` prints. */
export function clientSections(): string {
  return CLIENTS.map(section).join('\n\n');
}

export function clientNames(): string {
  return `${CLIENTS.map(({ name, title }) => `${title} (\`${name}\`)`).join(', ')}.`;
}

function section(client: McpClient): string {
  const { title, format, adds } = client;
  const command = adds === undefined ? [] : [`\`\`\`sh\n${typed(adds(START), 'linux')}\n\`\`\``, 'or by hand:'];
  return [`## ${title}`, ...command, files(client), `\`\`\`${format}\n${snippetOf(client, START)}\n\`\`\``].join(
    '\n\n',
  );
}

/** One line where the file is the same everywhere. */
function files({ files: of }: McpClient): string {
  const places = PLACES.map(
    ([system, each]) =>
      [
        system,
        of(each)
          .map((file) => `\`${file}\``)
          .join(' or '),
      ] as const,
  );
  const [, first = ''] = places[0] ?? [];
  if (places.every(([, text]) => text === first)) return `In ${first} of the project:`;
  return places.map(([system, text]) => `- ${system}: ${text}`).join('\n');
}
