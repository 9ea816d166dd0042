// Reads one JSON object {style, options} a line, writes one JSON string (the SVG) a line. Needed only to train again.
import { createInterface } from 'node:readline';
import { createAvatar } from '@dicebear/core';
import * as styles from '@dicebear/collection';

const chunks = [];
for await (const line of createInterface({ input: process.stdin })) {
  const { style, options } = JSON.parse(line);
  chunks.push(JSON.stringify(createAvatar(styles[style], options).toString()));
}
process.stdout.write(chunks.join('\n') + '\n');
