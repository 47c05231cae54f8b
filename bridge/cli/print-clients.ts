import type { McpClient, Places, Start } from './clients.ts';
import { typed } from '../../shared/typed.ts';
import { snippetOf } from './clients.ts';
import type { Screen } from './screen.ts';
import { printJson, printLines } from './screen.ts';

/**
 * `gantry clients`: what belongs into the configuration of a client, and where that is. Of one client only the snippet goes
 * to stdout, so that it can be put into a file.
 */
export function printClients(
  clients: readonly McpClient[],
  { start, places, screen }: { start: Start; places: Places; screen: Screen },
): void {
  const shown = clients.map((client) => clientJson(client, { start, places }));
  if (screen.isJson) {
    printJson(screen, { schema: 1, clients: shown });
    return;
  }
  const [only, ...others] = shown;
  if (only !== undefined && others.length === 0) {
    screen.talk.write(`${howTo(only).join('\n')}\n`);
    printLines(screen, [only.snippet]);
    return;
  }
  printLines(
    screen,
    shown.flatMap((client, index) => [...(index > 0 ? [''] : []), ...howTo(client), '', indented(client.snippet)]),
  );
}

type Shown = ReturnType<typeof clientJson>;

function clientJson(client: McpClient, { start, places }: { start: Start; places: Places }) {
  return {
    name: client.name,
    title: client.title,
    files: client.files(places),
    format: client.format,
    snippet: snippetOf(client, start),
    ...(client.adds !== undefined && { command: typed(client.adds(start), places.platform) }),
    ...(client.link !== undefined && { link: client.link(start) }),
  };
}

function howTo({ name, title, files, command, link }: Shown): string[] {
  return [
    `${title} (${name})`,
    ...(command === undefined ? [] : [`  run: ${command}`]),
    ...(link === undefined ? [] : [`  or open: ${link}`]),
    `  ${command === undefined && link === undefined ? 'put' : 'or put'} this into ${files.join('\n  or ')}, beside what is there:`,
  ];
}

function indented(text: string): string {
  return text.replaceAll(/^/gm, '    ');
}
