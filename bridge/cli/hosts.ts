import { EXIT } from '../../shared/exit-codes.ts';
import { tableLines, timeText, wrapped } from '../../shared/screen-text.ts';
import type { HostView } from '../fleet/host-view.ts';
import type { Session } from '../session.ts';
import { NO_HOST } from './no-host.ts';
import type { Paper } from './screen.ts';
import { printAnswer, printLines } from './screen.ts';

/** `gantry hosts`: where each is, whether it answers and how fast, and which release runs there. */
export async function showHosts(session: Session): Promise<number> {
  const { screen, version } = session;
  const hosts = (await session.hosts()).hosts();
  if (screen.isJson) printAnswer(screen, await session.ask('list_hosts', {}, { reach: 'hosts' }));
  else printLines(screen, hostLines(hosts, { out: screen.out, version }));
  return hosts.some(({ link }) => link.kind === 'up') ? EXIT.ok : EXIT.unavailable;
}

export function hostLines(hosts: readonly HostView[], { out, version }: { out: Paper; version: string }): string[] {
  if (hosts.length === 0) return wrapped(NO_HOST, { columns: out.columns });
  const head = ['HOST', 'ADDRESS', 'LINK', 'LATENCY', 'VERSION', 'GPUS', 'MODELS'];
  const [first = '', ...rows] = tableLines([head, ...hosts.map((host) => cells(host, version))]);
  return [
    out.paint('faint', first),
    ...hosts.flatMap((host, index) => {
      const line = rows[index] ?? '';
      const isUp = host.link.kind === 'up';
      return [isUp ? line : out.paint('bad', line), ...problems(host, out.columns)];
    }),
  ];
}

function cells({ name, url, link, snapshot }: HostView, version: string): string[] {
  const other = snapshot !== undefined && snapshot.agentVersion !== version ? ` (here ${version})` : '';
  const words = [link.kind === 'down' ? 'not connected' : link.kind === 'up' ? 'connected' : 'connecting'];
  if (snapshot?.isDraining === true) words.push('draining');
  if (snapshot?.isSimulated === true) words.push('simulated');
  return [
    name,
    url,
    words.join(', '),
    link.kind === 'up' ? timeText(link.latencyMs) : '-',
    snapshot === undefined ? '-' : `${snapshot.agentVersion}${other}`,
    snapshot === undefined ? '-' : String(snapshot.gpus.length),
    snapshot?.models.map(({ alias }) => alias).join(', ') || '-',
  ];
}

function problems({ link, snapshot }: HostView, columns: number | undefined): string[] {
  const texts =
    link.kind === 'down' ? [`${link.error.code}: ${link.error.message}`] : (snapshot?.problems ?? []).map(String);
  return texts.flatMap((text) => wrapped(text, { columns, indent: '  ' }));
}
