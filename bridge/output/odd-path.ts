import { isDeviceName } from './file-names.ts';

/**
 * PURE. What makes a path that a caller gave unusable, in a sentence, whatever directory it is in; undefined for a usable one.
 * What is reserved on Windows is refused everywhere where a share could carry it there; what only Windows reads in its own
 * way only there.
 */
export function oddPath(asked: string, platform: string): string | undefined {
  if (asked.trim() === '') return 'it is empty. Give the path of a file or directory.';
  if (/\p{Cc}/u.test(asked)) return 'it contains a control character. Write the path without it.';
  if (/\p{Cs}/u.test(asked)) return 'it contains half a surrogate pair, which is not text.';
  if (/^[a-z][a-z0-9+.-]+:/i.test(asked)) return 'URLs are not read. Save the file first and give its path.';
  if (/^[\\/]{2}/.test(asked)) return 'network and device paths are not used. Map it to a directory first.';
  const device = asked.split(/[/\\]/).find(isDeviceName);
  if (device !== undefined) return `${device} is the name of a device on Windows. Choose another name.`;
  return platform === 'win32' ? oddOnWindows(asked) : undefined;
}

function oddOnWindows(asked: string): string | undefined {
  if (/^[a-z]:(?![\\/])/i.test(asked)) {
    return 'a drive letter without a slash means a directory that changes. Write the whole path, like C:\\Users\\me\\a.png.';
  }
  if (asked.slice(2).includes(':'))
    return 'a colon behind the drive names a hidden stream of a file. Write it without.';
  const parts = asked.split(/[/\\]/).filter((part) => part !== '.' && part !== '..');
  const dropped = parts.find((part) => /[. ]$/.test(part));
  if (dropped === undefined) return undefined;
  return `Windows drops the dots and spaces at the end of ${JSON.stringify(dropped)}, which makes it another name. Write it without them.`;
}
