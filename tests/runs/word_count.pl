# Counts the words of every file below a directory: `count<TAB>word` lines, ordered by their bytes.
# A word is a run of bytes other than ASCII white space.
use strict;
use warnings;

my %count;

sub walk {
    my ($dir) = @_;
    opendir(my $handle, $dir) or die "$dir: $!";
    for my $name (readdir $handle) {
        next if $name eq '.' or $name eq '..';
        my $path = "$dir/$name";
        if (-d $path) { walk($path); next }
        open(my $file, '<:raw', $path) or die "$path: $!";
        local $/;
        my $text = <$file> // '';
        $count{$_}++ for grep { length } split /[ \t\n\x0b\f\r]+/, $text;
    }
}

walk($ARGV[0]);
binmode STDOUT;
print "$count{$_}\t$_\n" for sort keys %count;
