import { AppError } from '../../shared/errors.ts';
import type { Invite } from '../../shared/invite.ts';
import { parseInvite } from '../../shared/invite.ts';
import type { HostConfig } from '../fleet/host-view.ts';
import { addHost, checkHostList, removeHost } from '../pairing/host-list.ts';
import { hostNameOf } from '../pairing/invited-hosts.ts';
import { fingerprintOf } from '../pairing/pinned-certificate.ts';
import type { Paired } from '../pairing/redeem-invite.ts';
import { redeemInvite } from '../pairing/redeem-invite.ts';
import { inviteOverSsh, SshTunnel } from '../pairing/ssh-invite.ts';

export type AddOptions = {
  /** bridge.yaml, there or not. */
  file: string;
  /** Those that are in it. */
  hosts: readonly HostConfig[];
  /** What the token is named after. */
  laptop: string;
  signal: AbortSignal;
  say: (text: string) => void;
  /** Opens a link and prints what is there; false when it did not come up. */
  show: (host: { name: string; url: string; token: string; certificate: string | undefined }) => Promise<boolean>;
};

type Added = { name: string; url: string; role: string };

const USUAL_PORT = 7801;

/** Pairs with the agent of an invite, keeps its token in bridge.yaml, and shows what is there. */
export async function addInvited(line: string, o: AddOptions & { name: string | undefined }): Promise<Added> {
  const invite = parseInvite(line);
  const name = newName(invite, o);
  await checkHostList(o.file);
  return await keep(await redeemInvite(invite, { name: o.laptop, signal: o.signal }), { ...o, name });
}

/** The same through ssh; where nothing but ssh gets there, through a tunnel, which has to be there later, too. */
export async function addOverSsh(target: string, o: AddOptions & { name: string | undefined }): Promise<Added> {
  const { line, isLoopbackOnly, addresses } = await inviteOverSsh(target);
  const invite = parseInvite(line);
  const name = newName(invite, o);
  await checkHostList(o.file);
  if (!isLoopbackOnly) {
    try {
      return await keep(await redeemInvite(invite, { name: o.laptop, signal: o.signal }), { ...o, name });
    } catch (error) {
      if (!(error instanceof AppError) || error.code !== 'AGENT_UNREACHABLE') throw error;
      o.say(`${error.message}\nSo it is tried through ssh.\n`);
    }
  }
  const ports = [USUAL_PORT, ...Array.from({ length: 20 }, (_, more) => USUAL_PORT + 1 + more)].filter(
    (port) => !o.hosts.some(({ url }) => url.endsWith(`:${port}`)),
  );
  await using tunnel = await SshTunnel.open(target, { to: addresses[0] ?? '', ports, signal: o.signal });
  const through: Invite = { ...invite, addresses: [`127.0.0.1:${tunnel.port}`] };
  const added = await keep(await redeemInvite(through, { name: o.laptop, signal: o.signal }), { ...o, name });
  o.say(
    `\nOnly a tunnel reaches ${target}: its agent ${isLoopbackOnly ? 'listens on that machine alone' : 'cannot be reached from here'}. ` +
      `${added.name} works while this runs, so keep it running:\n    ${tunnel.command}\n` +
      (isLoopbackOnly ? 'To do without, open the agent to your network, there: gantry-agent listen network\n' : ''),
  );
  return added;
}

/** Takes the host out of bridge.yaml. Its token stays valid until it is revoked on the host, which is said. */
export async function removeNamed(
  name: string,
  { file, hosts, say }: Pick<AddOptions, 'file' | 'hosts' | 'say'>,
): Promise<void> {
  if (!(await removeHost(file, name))) {
    const known = hosts.map((host) => host.name).join(', ') || 'none';
    throw new AppError('INVALID_ARGUMENT', `${file} has no host named ${name}. Known: ${known}.`);
  }
  say(
    `${name} is forgotten here. Its token is still valid; end it on that host with \`gantry-agent tokens revoke\`.\n`,
  );
}

/** Before the code is used: an invite that cannot be kept should still be good afterwards. */
function newName(invite: Invite, { hosts, name, file }: AddOptions & { name: string | undefined }): string {
  const same = hosts.find(({ url, tls }) => isSameAgent(invite, { url, ca: tls?.ca }));
  if (same !== undefined) {
    throw new AppError(
      'INVALID_ARGUMENT',
      `This agent is in ${file} already, as ${same.name}. To pair anew: gantry remove ${same.name}`,
    );
  }
  const wanted = name ?? hostNameOf(invite);
  if (!/^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/.test(wanted)) {
    throw new AppError(
      'INVALID_ARGUMENT',
      `${JSON.stringify(wanted)} is not a name: use letters, digits, dots and dashes.`,
    );
  }
  const holder = hosts.find((host) => host.name === wanted);
  if (holder === undefined) return wanted;
  throw new AppError(
    'INVALID_ARGUMENT',
    `${file} has a host named ${wanted} already (${holder.url}). Give this one another name: --name NAME`,
  );
}

/** By its certificate, or, where there is none, by its address unless that is the near end of some tunnel. */
function isSameAgent(
  { fingerprint, addresses }: Invite,
  { url, ca }: { url: string; ca: string | undefined },
): boolean {
  if (fingerprint !== undefined) return ca !== undefined && fingerprintOf(ca) === fingerprint;
  return addresses.some((address) => !address.startsWith('127.') && url === `ws://${address}`);
}

async function keep(paired: Paired, o: AddOptions & { name: string }): Promise<Added> {
  const { url, token, role, certificate } = paired;
  let host = { name: o.name, url, token, certificate };
  try {
    host = { ...host, name: await addHost(o.file, host) };
  } catch (error) {
    o.say(`The host gave a token, but ${o.file} could not be written. Revoke it there: gantry-agent tokens list\n`);
    throw error;
  }
  o.say(`${host.name} is in ${o.file} (${url}, role ${role}).\n`);
  if (!(await o.show(host))) o.say('The link did not come up just now; `gantry status` tries again.\n');
  o.say('Clients that run already know it after they are started again.\n');
  return { name: host.name, url, role };
}
